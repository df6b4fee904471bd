//! Whether there is room left on a builder's disk.

use std::fmt;

const GIB: f64 = 1_073_741_824.0;

/// Below its floor there is no room; above it by a quarter, there is again.
#[derive(Debug)]
pub struct Room {
    floor: u64,
    lacking: Option<NoRoom>,
}

/// Too little is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoRoom {
    /// Bytes free when that was noticed.
    pub free: u64,
    /// Bytes that must be.
    pub floor: u64,
}

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (free, floor) = (self.free as f64 / GIB, self.floor as f64 / GIB);
        write!(f, "its disk is nearly full: {free:.2} GiB are free where the store is, {floor:.2} GiB must be")
    }
}

impl Room {
    /// With a floor in bytes; one of 0 is never reached.
    #[must_use]
    pub fn new(floor: u64) -> Self {
        Self { floor, lacking: None }
    }

    /// So many bytes are free. Says whether that changed anything.
    pub fn handle_free(&mut self, free: u64) -> bool {
        let before = self.lacking;
        if free < self.floor {
            self.lacking.get_or_insert(NoRoom { free, floor: self.floor });
        } else if free >= self.floor.saturating_add(self.floor / 4) {
            self.lacking = None;
        }
        before != self.lacking
    }

    /// Why no build should come here, if so.
    #[must_use]
    pub fn lacking(&self) -> Option<NoRoom> {
        self.lacking
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_again_only_well_above_the_floor() {
        let mut room = Room::new(1 << 30);
        assert!(!room.handle_free(1 << 30));
        assert!(room.handle_free((1 << 30) - 1));
        assert!(!room.handle_free(1 << 29) && !room.handle_free(1 << 30));
        assert!(room.lacking().unwrap().to_string().contains("1.00 GiB are free where the store is, 1.00 GiB must be"));
        assert!(room.handle_free(5 << 28));
        assert_eq!(room.lacking(), None);
        assert!(!Room::new(0).handle_free(0));
    }
}
