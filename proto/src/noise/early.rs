//! What control may send before its first HTTP/2 frame (`control/ts2021/conn.go`): a magic, a length and JSON with a
//! challenge for the node key. Nothing has to answer it and some servers don't send it.

use super::NoiseError;

/// Bytes of an early payload at most, as in Go.
pub const MAX_EARLY_PAYLOAD: usize = 10 << 20;

/// No HTTP/2 frame begins so: it would be one of 16 MiB.
const MAGIC: &[u8; 5] = b"\xff\xff\xffTS";
const HEADER: usize = MAGIC.len() + 4;

/// Takes the early payload, if there is one, out of the bytes from control, and lets the rest pass.
#[derive(Debug, Default)]
pub struct EarlyPayload {
    head: Vec<u8>,
    state: State,
}

#[derive(Debug, Default)]
enum State {
    /// Fewer than [`HEADER`] bytes came.
    #[default]
    Undecided,
    /// So many bytes of it are still to come.
    Skipping(usize),
    Over,
}

impl EarlyPayload {
    /// Takes decrypted bytes and appends to `out` those that belong to HTTP/2.
    ///
    /// # Errors
    /// When the early payload is longer than [`MAX_EARLY_PAYLOAD`].
    pub fn handle_bytes(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), NoiseError> {
        match self.state {
            State::Over => out.extend_from_slice(bytes),
            State::Skipping(left) => self.skip(left, bytes, out),
            State::Undecided => {
                self.head.extend_from_slice(bytes);
                let Some((magic, length)) = self.head.first_chunk::<HEADER>().map(|head| head.split_at(MAGIC.len()))
                else {
                    return Ok(());
                };
                let length = u32::from_be_bytes(length.try_into().unwrap_or_default()) as usize;
                let is_early = magic == MAGIC;
                let head = std::mem::take(&mut self.head);
                if !is_early {
                    self.state = State::Over;
                    out.extend_from_slice(&head);
                } else if length > MAX_EARLY_PAYLOAD {
                    return Err(NoiseError::EarlyPayloadLength(length));
                } else {
                    self.skip(length, head.get(HEADER..).unwrap_or_default(), out);
                }
            }
        }
        Ok(())
    }

    fn skip(&mut self, left: usize, bytes: &[u8], out: &mut Vec<u8>) {
        match left.checked_sub(bytes.len()) {
            Some(left) if left > 0 => self.state = State::Skipping(left),
            _ => {
                self.state = State::Over;
                out.extend_from_slice(bytes.get(left..).unwrap_or_default());
            }
        }
    }
}

/// The server's end: writes an early payload, before the first HTTP/2 frame. More than [`MAX_EARLY_PAYLOAD`] is cut.
pub fn write_early_payload(json: &[u8], out: &mut Vec<u8>) {
    let json = json.get(..MAX_EARLY_PAYLOAD).unwrap_or(json);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&u32::try_from(json.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(json);
}
