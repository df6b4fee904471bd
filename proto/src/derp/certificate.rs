//! The relay's key in a certificate (`derp/derpserver/derpserver.go`, `initMetacert`).
//!
//! Behind its own certificate a relay shows another one that certifies nothing: its subject's common name is the relay's
//! key. A node that reads it can say who it is together with its request, a round trip earlier.

use crate::key::NodePublic;

/// What the common name begins with; the key follows in hex.
pub const CERTIFICATE_NAME_PREFIX: &str = "derpkey";

/// Digits of the key.
const DIGITS: usize = 64;
/// The tags that DER has for such a text: UTF8String and PrintableString.
const TEXT_TAGS: [u8; 2] = [0x0c, 0x13];

/// The relay's key in a certificate (DER), if that is such a one.
///
/// It is a hint and proves nothing: what is sealed for the key opens for its owner alone, and the relay's greeting tells
/// it once more.
#[must_use]
pub fn key_in_certificate(certificate: &[u8]) -> Option<NodePublic> {
    let length = u8::try_from(CERTIFICATE_NAME_PREFIX.len() + DIGITS).ok()?;
    certificate.windows(2 + usize::from(length)).find_map(|window| {
        let (&[tag, len], text) = window.split_first_chunk()?;
        let digits = text.strip_prefix(CERTIFICATE_NAME_PREFIX.as_bytes())?;
        if !TEXT_TAGS.contains(&tag) || len != length {
            return None;
        }
        let digits = std::str::from_utf8(digits).ok()?;
        format!("{}{digits}", NodePublic::PREFIX).parse().ok()
    })
}
