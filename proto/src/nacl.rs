//! The NaCl box (X25519, XSalsa20-Poly1305) that disco and DERP seal with: nonce, then tag, then ciphertext.
//!
//! This is the byte order of Go's `golang.org/x/crypto/nacl/box` behind `types/key` `SealTo` and `OpenFrom`.

use crypto_box::aead::AeadInPlace as _;
use crypto_box::{Nonce, PublicKey, SalsaBox, SecretKey, Tag};
use rand_core::CryptoRng;

use crate::key::KEY_LEN;

/// Bytes of a nonce, which stands in front of the box.
pub(crate) const NONCE_LEN: usize = 24;
/// Bytes of the authenticator between nonce and ciphertext.
pub(crate) const TAG_LEN: usize = 16;
/// What a sealed message is longer by than its plain text.
pub(crate) const OVERHEAD: usize = NONCE_LEN + TAG_LEN;

/// The key that two Curve25519 keys have in common, computed once. Zeroed on drop.
pub(crate) struct NaclBox(SalsaBox);

impl NaclBox {
    pub(crate) fn new(own: &[u8; KEY_LEN], other: &[u8; KEY_LEN]) -> Self {
        Self(SalsaBox::new(&PublicKey::from(*other), &SecretKey::from(*own)))
    }

    /// Seals in place: the plain text stands in `buffer[OVERHEAD..]`, and nonce and tag are put before it. `None` when
    /// the buffer is shorter than [`OVERHEAD`].
    pub(crate) fn seal_in_place(&self, rng: &mut dyn CryptoRng, buffer: &mut [u8]) -> Option<()> {
        let (nonce, rest) = buffer.split_at_mut_checked(NONCE_LEN)?;
        let (tag, text) = rest.split_at_mut_checked(TAG_LEN)?;
        rng.fill_bytes(nonce);
        let sealed = self.0.encrypt_in_place_detached(Nonce::from_slice(nonce), b"", text).ok()?;
        tag.copy_from_slice(&sealed);
        Some(())
    }

    /// The plain text of `sealed`; `None` when it is too short or wasn't sealed with this key.
    pub(crate) fn open(&self, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, rest) = sealed.split_at_checked(NONCE_LEN)?;
        let (tag, text) = rest.split_at_checked(TAG_LEN)?;
        let mut text = text.to_vec();
        let (nonce, tag) = (Nonce::from_slice(nonce), Tag::from_slice(tag));
        self.0.decrypt_in_place_detached(nonce, b"", &mut text, tag).ok()?;
        Some(text)
    }
}
