//! Frames out of a stream that comes in pieces.

use super::{DerpError, Frame, HEADER_LEN, MAX_FRAME_LEN, parse};

/// What a buffer keeps of its capacity when it is empty; a rare large frame gives its memory back.
const KEPT_CAPACITY: usize = 256 << 10;

/// Bytes that were read from a DERP connection and the frames in them.
///
/// It holds at most one frame of [`MAX_FRAME_LEN`] and what was read behind it.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
}

impl Decoder {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The buffer to append newly read bytes to. What was taken as frames is gone from it.
    pub fn unread(&mut self) -> &mut Vec<u8> {
        self.buffer.drain(..self.start.min(self.buffer.len()));
        self.start = 0;
        if self.buffer.is_empty() {
            self.buffer.shrink_to(KEPT_CAPACITY);
        }
        &mut self.buffer
    }

    /// The next frame, or `None` when more must be read first.
    ///
    /// # Errors
    /// When the stream makes no sense from here on: see [`parse`].
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, DerpError> {
        let unread = self.buffer.get(self.start..).unwrap_or_default();
        match parse(unread)? {
            Some((frame, taken)) => {
                self.start += taken;
                Ok(Some(frame))
            }
            None => {
                // A frame that is larger was refused by its header.
                debug_assert!(unread.len() < HEADER_LEN + MAX_FRAME_LEN);
                Ok(None)
            }
        }
    }
}
