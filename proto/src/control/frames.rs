//! How messages lie in the body of a map stream: a little-endian length and that many bytes, each a message of its own
//! (`readUncompressedOrZstd…` in `control/controlclient/direct.go`).

/// Bytes of a message on the wire at most. Maps beyond 16 MiB exist.
pub const MAX_WIRE_MESSAGE: usize = 64 << 20;
/// Bytes of a decompressed message at most: a bound against bombs.
pub const MAX_DECODED_MESSAGE: usize = 256 << 20;
const HEADER: usize = 4;

/// A length that no message has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("control announced a netmap message of {0} bytes")]
pub struct FrameError(pub usize);

/// Cuts the body into messages. Holds one unfinished message, which takes memory as it comes, not as announced.
#[derive(Debug, Default)]
pub struct MapFrames {
    buffer: Vec<u8>,
    start: usize,
}

impl MapFrames {
    /// Takes bytes as they came.
    pub fn handle_bytes(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message.
    ///
    /// # Errors
    /// When its length is 0 or beyond [`MAX_WIRE_MESSAGE`]: the stream is lost.
    pub fn poll_message(&mut self) -> Result<Option<&[u8]>, FrameError> {
        let Some(rest) = self.buffer.get(self.start..) else { return Ok(None) };
        let Some(&header) = rest.first_chunk::<HEADER>() else { return Ok(None) };
        let len = u32::from_le_bytes(header) as usize;
        if len == 0 || len > MAX_WIRE_MESSAGE {
            return Err(FrameError(len));
        }
        let message = rest.get(HEADER..HEADER + len);
        if message.is_some() {
            self.start += HEADER + len;
        }
        Ok(message)
    }
}

/// The server's end: writes a message.
pub fn write_frame(message: &[u8], out: &mut Vec<u8>) {
    let len = u32::try_from(message.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(message);
}
