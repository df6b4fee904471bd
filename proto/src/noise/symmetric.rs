//! The handshake's running state: Noise Protocol Framework revision 34, §5.2, for Curve25519, ChaChaPoly and BLAKE2s.
//!
//! Written out here rather than taken from a library, so that the ephemeral key comes from the caller's RNG, keys are
//! zeroed, worthless public keys are refused, and the split keys are ours (Noise libraries count little-endian).

use blake2::Blake2s256;
use blake2::digest::Digest;
use chacha20poly1305::aead::AeadInPlace;
use chacha20poly1305::{ChaCha20Poly1305, Key, KeyInit, Nonce, Tag};
use hmac::{Mac, SimpleHmac};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::{Zeroize, Zeroizing};

use super::NoiseError;

const PROTOCOL: &[u8] = b"Noise_IK_25519_ChaChaPoly_BLAKE2s";
/// Bytes of an authentication tag.
pub(super) const TAG: usize = 16;

type Hash = [u8; 32];
/// A key for ChaCha20-Poly1305.
pub(super) type CipherKey = Zeroizing<[u8; 32]>;

/// The transcript's hash and the chaining key.
pub(super) struct Symmetric {
    hash: Hash,
    chaining: CipherKey,
}

impl Symmetric {
    /// The state before any message (`InitializeSymmetric`). The name is longer than a hash, so it is hashed.
    pub(super) fn new() -> Self {
        let hash: Hash = Blake2s256::digest(PROTOCOL).into();
        Self { hash, chaining: Zeroizing::new(hash) }
    }

    /// Adds something that both ends know.
    pub(super) fn mix_hash(&mut self, data: &[u8]) {
        self.hash = Blake2s256::new().chain_update(self.hash).chain_update(data).finalize().into();
    }

    /// Adds a Diffie-Hellman secret (`MixKey`); the key it gives is for one `seal` or `open`.
    pub(super) fn mix_dh(&mut self, private: &StaticSecret, public: &[u8; 32]) -> Result<CipherKey, NoiseError> {
        let shared = private.diffie_hellman(&PublicKey::from(*public));
        if !shared.was_contributory() {
            return Err(NoiseError::WeakKey);
        }
        let (chaining, key) = hkdf(&self.chaining, shared.as_bytes());
        self.chaining = chaining;
        Ok(key)
    }

    /// Encrypts in place under `key` (`EncryptAndHash`).
    pub(super) fn seal(&mut self, key: &CipherKey, text: &mut [u8]) -> [u8; TAG] {
        let tag: [u8; TAG] = ChaCha20Poly1305::new(Key::from_slice(key.as_slice()))
            .encrypt_in_place_detached(&Nonce::default(), &self.hash, text)
            .expect("a handshake message is far shorter than the cipher's limit of 256 GiB")
            .into();
        self.hash = Blake2s256::new().chain_update(self.hash).chain_update(&text).chain_update(tag).finalize().into();
        tag
    }

    /// Decrypts in place under `key` (`DecryptAndHash`).
    pub(super) fn open(&mut self, key: &CipherKey, text: &mut [u8], tag: &[u8; TAG]) -> Result<(), NoiseError> {
        let before = self.hash;
        self.hash = Blake2s256::new().chain_update(before).chain_update(&text).chain_update(tag).finalize().into();
        ChaCha20Poly1305::new(Key::from_slice(key.as_slice()))
            .decrypt_in_place_detached(&Nonce::default(), &before, text, Tag::from_slice(tag))
            .map_err(|_| NoiseError::Decrypt)
    }

    /// The keys for what follows: the initiator's first (`Split`).
    pub(super) fn split(self) -> (CipherKey, CipherKey) {
        hkdf(&self.chaining, &[])
    }
}

impl Drop for Symmetric {
    fn drop(&mut self) {
        self.hash.zeroize();
    }
}

/// Noise §4.3: HKDF (RFC 5869) with two outputs and no info.
fn hkdf(chaining: &CipherKey, input: &[u8]) -> (CipherKey, CipherKey) {
    let extracted = hmac(chaining.as_slice(), &[input]);
    let first = hmac(extracted.as_slice(), &[&[1]]);
    let second = hmac(extracted.as_slice(), &[first.as_slice(), &[2]]);
    (first, second)
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> CipherKey {
    let mut mac = <SimpleHmac<Blake2s256> as Mac>::new_from_slice(key).expect("HMAC takes keys of any length");
    for part in parts {
        mac.update(part);
    }
    Zeroizing::new(mac.finalize().into_bytes().into())
}
