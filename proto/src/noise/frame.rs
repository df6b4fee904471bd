//! Frames: a kind, a big-endian length, and that many bytes (`control/controlbase/messages.go`).

use super::NoiseError;

/// Bytes of a whole frame at most, with its header (`maxMessageSize` in `control/controlbase/conn.go`).
pub const MAX_FRAME: usize = 4096;
/// Bytes of the header: kind and length.
pub(super) const HEADER: usize = 3;

pub(super) const KIND_INITIATION: u8 = 1;
pub(super) const KIND_RESPONSE: u8 = 2;
pub(super) const KIND_ERROR: u8 = 3;
pub(super) const KIND_RECORD: u8 = 4;

/// Bytes of an error's text that are kept; it comes from anybody.
const MAX_ERROR_TEXT: usize = 200;

/// Cuts a byte stream into frames. Holds one unfinished frame beside what was last pushed.
#[derive(Debug, Default)]
pub(super) struct Frames {
    buffer: Vec<u8>,
    start: usize,
}

impl Frames {
    /// Takes bytes as they came.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame: its kind and what it carries.
    pub(super) fn next(&mut self) -> Result<Option<(u8, &mut [u8])>, NoiseError> {
        let Some(&[kind, high, low]) = self.buffer.get(self.start..).and_then(|rest| rest.first_chunk::<HEADER>())
        else {
            return Ok(None);
        };
        let len = HEADER + usize::from(u16::from_be_bytes([high, low]));
        if len > MAX_FRAME {
            return Err(NoiseError::Length(len));
        }
        let from = self.start;
        match self.buffer.get_mut(from + HEADER..from + len) {
            Some(payload) => {
                self.start = from + len;
                Ok(Some((kind, payload)))
            }
            None => Ok(None),
        }
    }
}

/// Writes a frame's header; `len` is that of what follows and at most [`MAX_FRAME`] − 3.
pub(super) fn write_header(kind: u8, len: usize, out: &mut Vec<u8>) {
    debug_assert!(len + HEADER <= MAX_FRAME);
    out.push(kind);
    out.extend_from_slice(&u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes());
}

/// Writes an error frame: why a server won't go on with a handshake. Only a hint, since it is not authenticated.
pub fn write_error(text: &str, out: &mut Vec<u8>) {
    let text = text.as_bytes();
    let text = text.get(..MAX_ERROR_TEXT).unwrap_or(text);
    write_header(KIND_ERROR, text.len(), out);
    out.extend_from_slice(text);
}

/// What an error frame says, fit to be shown: bounded, without control characters.
pub(super) fn error_text(payload: &[u8]) -> String {
    let text = payload.get(..MAX_ERROR_TEXT).unwrap_or(payload);
    String::from_utf8_lossy(text).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
