//! A zstd frame (RFC 8878 §3.1.1) of stored blocks: what a map message is wrapped in when the node asked for zstd.
//!
//! On loopback nothing is gained by compressing; what matters is that the client's decoder is used.

const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// No content size, no checksum, no dictionary, and a window of its own (next byte).
const DESCRIPTOR: u8 = 0;
/// A window of 128 KiB: exponent 7 above 2^10, mantissa 0.
const WINDOW: u8 = 7 << 3;
/// The largest block (RFC 8878 §3.1.1.2.4): the window, and never above 128 KiB.
const MAX_BLOCK: usize = 128 << 10;

/// `data` as one frame.
pub(crate) fn frame(data: &[u8]) -> Vec<u8> {
    let blocks = data.len().div_ceil(MAX_BLOCK).max(1);
    let mut out = Vec::with_capacity(data.len() + 3 * blocks + 6);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[DESCRIPTOR, WINDOW]);
    let mut rest = data;
    loop {
        let (block, after) = rest.split_at(rest.len().min(MAX_BLOCK));
        let last = u32::from(after.is_empty());
        // A block header is 24 bits: last, type (0 is stored), size.
        let size = u32::try_from(block.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&(last | size << 3).to_le_bytes()[..3]);
        out.extend_from_slice(block);
        rest = after;
        if rest.is_empty() {
            return out;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_of_stored_blocks() {
        assert_eq!(frame(b"hi"), [0x28, 0xb5, 0x2f, 0xfd, 0, 0x38, 0x11, 0, 0, b'h', b'i']);
        assert_eq!(frame(b""), [0x28, 0xb5, 0x2f, 0xfd, 0, 0x38, 1, 0, 0]);
        let two = frame(&vec![7; MAX_BLOCK + 1]);
        assert_eq!(two.len(), 6 + 3 + MAX_BLOCK + 3 + 1);
        assert_eq!(two[6..9], [0, 0, 0x10]);
        assert_eq!(two[9 + MAX_BLOCK..], [9, 0, 0, 7]);
    }
}
