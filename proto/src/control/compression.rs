//! The compression of the map stream: a zstd frame a message (RFC 8878).

use std::io::Read;

use ruzstd::decoding::StreamingDecoder;

use super::MAX_DECODED_MESSAGE;
use super::answer::printable;

/// How a zstd frame begins (RFC 8878 §3.1.1).
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// A message that can't be decompressed: control's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CompressionError {
    /// It is no zstd frame, or a broken one.
    #[error("control sent a netmap that can't be decompressed: {0}")]
    Zstd(String),
    /// It grew beyond [`MAX_DECODED_MESSAGE`].
    #[error("control sent a netmap that is longer than {MAX_DECODED_MESSAGE} bytes")]
    TooLong,
}

/// A message out of its zstd frame. A server that doesn't compress though it was asked to is borne with: JSON can't begin
/// like a frame.
///
/// # Errors
/// When it is broken or too long. Memory grows with what comes out, and no further than that limit.
pub fn decompress(mut message: &[u8]) -> Result<Vec<u8>, CompressionError> {
    if !message.starts_with(&ZSTD_MAGIC) {
        return Ok(message.to_vec());
    }
    let zstd = |error: &dyn std::fmt::Display| CompressionError::Zstd(printable(error.to_string().as_bytes()));
    let mut json = Vec::new();
    let limit = MAX_DECODED_MESSAGE as u64;
    let decoder = StreamingDecoder::new(&mut message).map_err(|error| zstd(&error))?;
    let len = decoder.take(limit + 1).read_to_end(&mut json).map_err(|error| zstd(&error))?;
    if len as u64 > limit {
        return Err(CompressionError::TooLong);
    }
    Ok(json)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::control::{MapFrames, write_frame};

    #[test]
    fn messages_are_decompressed() {
        // Laid out by hand after RFC 8878 §3.1.1: a raw block, and a block of one repeated byte.
        let raw = b"\x28\xb5\x2f\xfd\x20\x12\x91\x00\x00{\"KeepAlive\":true}";
        assert_eq!(decompress(raw).as_deref(), Ok(&b"{\"KeepAlive\":true}"[..]));
        let repeated = b"\x28\xb5\x2f\xfd\x20\x05\x2b\x00\x00x";
        assert_eq!(decompress(repeated).as_deref(), Ok(&b"xxxxx"[..]));
        assert_eq!(decompress(b"{}").as_deref(), Ok(&b"{}"[..]));
        for broken in
            [&raw[..12], &b"\x28\xb5\x2f\xfd"[..], b"\x28\xb5\x2f\xfd\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"]
        {
            assert!(decompress(broken).is_err());
        }
    }

    /// Thing 9 that independent clients get wrong: a decoder that is kept over messages is at its end with the first one.
    #[test]
    fn each_message_of_a_stream_is_a_frame_of_its_own() {
        let keep_alive = &b"\x28\xb5\x2f\xfd\x20\x12\x91\x00\x00{\"KeepAlive\":true}"[..];
        let cut_off = &keep_alive[..12];
        let mut wire = Vec::new();
        for message in [keep_alive, keep_alive, cut_off, keep_alive] {
            write_frame(message, &mut wire);
        }
        let mut frames = MapFrames::default();
        frames.handle_bytes(&wire);
        let mut next = || decompress(frames.poll_message().unwrap().unwrap());
        for _ in 0..2 {
            assert_eq!(next().as_deref(), Ok(&b"{\"KeepAlive\":true}"[..]));
        }
        assert!(next().is_err());
        assert_eq!(next().as_deref(), Ok(&b"{\"KeepAlive\":true}"[..]), "whatever the one before was");
    }

    proptest! {
        #[test]
        fn any_frame_is_decompressed_or_refused(rest in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decompress(&[&ZSTD_MAGIC[..], &rest].concat());
        }
    }
}
