//! The connection after the handshake: records of at most 4077 bytes, counted in big-endian (`control/controlbase/conn.go`).

use chacha20poly1305::aead::AeadInPlace;
use chacha20poly1305::{ChaCha20Poly1305, Key, KeyInit, Nonce, Tag};

use super::NoiseError;
use super::frame::{Frames, HEADER, KIND_ERROR, KIND_RECORD, MAX_FRAME, error_text, write_header};
use super::symmetric::{CipherKey, TAG};

/// Bytes that one record can carry: a longer one is refused by the Go ends.
pub const MAX_PLAINTEXT: usize = MAX_FRAME - HEADER - TAG;

/// Both directions of a connection after its handshake.
pub struct Records {
    /// For what we send.
    pub sealer: Sealer,
    /// For what we get.
    pub opener: Opener,
}

/// Encrypts what we send.
pub struct Sealer {
    cipher: ChaCha20Poly1305,
    counter: Counter,
}

impl Sealer {
    pub(super) fn new(key: &CipherKey) -> Self {
        Self { cipher: cipher(key), counter: Counter(0) }
    }

    /// Appends `plaintext` to `out` in as many records as it takes: none if it is empty.
    ///
    /// # Errors
    /// [`NoiseError::Exhausted`] after 2^64 − 1 records.
    pub fn seal(&mut self, plaintext: &[u8], out: &mut Vec<u8>) -> Result<(), NoiseError> {
        plaintext.chunks(MAX_PLAINTEXT).try_for_each(|chunk| self.seal_record(chunk, out))
    }

    /// Appends one record, which may be empty; `chunk` is at most [`MAX_PLAINTEXT`] long.
    pub(super) fn seal_record(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> Result<(), NoiseError> {
        let nonce = self.counter.next()?;
        write_header(KIND_RECORD, chunk.len() + TAG, out);
        let from = out.len();
        out.extend_from_slice(chunk);
        let text = out.get_mut(from..).unwrap_or_default();
        let tag = self.cipher.encrypt_in_place_detached(&nonce, &[], text).map_err(|_| NoiseError::Exhausted)?;
        out.extend_from_slice(&tag);
        Ok(())
    }
}

/// Decrypts what we get.
pub struct Opener {
    cipher: ChaCha20Poly1305,
    counter: Counter,
    frames: Frames,
    failed: Option<NoiseError>,
}

impl Opener {
    pub(super) fn new(key: &CipherKey, frames: Frames) -> Self {
        Self { cipher: cipher(key), counter: Counter(0), frames, failed: None }
    }

    /// Takes bytes as they came from the network, cut anywhere (none at first, for what came with the handshake), and
    /// appends what they say to `out`. Holds back one unfinished record at most.
    ///
    /// # Errors
    /// When they aren't what the other end sent, from then on for ever; `out` has what came before.
    pub fn open(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), NoiseError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.frames.push(bytes);
        self.open_whole(out).inspect_err(|error| self.failed = Some(error.clone()))
    }

    fn open_whole(&mut self, out: &mut Vec<u8>) -> Result<(), NoiseError> {
        while let Some((kind, payload)) = self.frames.next()? {
            match kind {
                KIND_RECORD => {}
                KIND_ERROR => return Err(NoiseError::Refused(error_text(payload))),
                _ => return Err(NoiseError::UnexpectedFrame(kind)),
            }
            let len = payload.len();
            let (text, tag) = payload.split_last_chunk_mut::<TAG>().ok_or(NoiseError::Length(len))?;
            let nonce = self.counter.next()?;
            self.cipher
                .decrypt_in_place_detached(&nonce, &[], text, Tag::from_slice(tag))
                .map_err(|_| NoiseError::Decrypt)?;
            out.extend_from_slice(text);
        }
        Ok(())
    }
}

/// Counts records. 2^64 − 1 is not a valid count.
struct Counter(u64);

impl Counter {
    /// The next record's nonce: four zero bytes and the count, big-endian, where Noise would have little-endian.
    fn next(&mut self) -> Result<Nonce, NoiseError> {
        let mut nonce = Nonce::default();
        let [.., b0, b1, b2, b3, b4, b5, b6, b7] = nonce.as_mut_slice() else { return Err(NoiseError::Exhausted) };
        [*b0, *b1, *b2, *b3, *b4, *b5, *b6, *b7] = self.0.to_be_bytes();
        self.0 = self.0.checked_add(1).ok_or(NoiseError::Exhausted)?;
        Ok(nonce)
    }
}

fn cipher(key: &CipherKey) -> ChaCha20Poly1305 {
    ChaCha20Poly1305::new(Key::from_slice(key.as_slice()))
}
