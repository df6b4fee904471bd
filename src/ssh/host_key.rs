//! The endpoint's host key: one Ed25519 key, new with every start unless it is kept ([`crate::state`]), known to peers
//! through the control plane.

use std::fmt;

use russh::keys::ssh_key::LineEnding;
use russh::keys::ssh_key::private::{Ed25519Keypair, KeypairData};
use russh::keys::{Algorithm, PrivateKey, PublicKey};
use zeroize::Zeroizing;

/// A host key. The secret half is zeroed on drop (by `ssh-key`) and isn't shown.
#[derive(Clone)]
pub struct HostKey {
    private: PrivateKey,
    public_line: String,
}

/// What can be wrong with a host key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostKeyError {
    /// A seed that makes no key, which an Ed25519 seed always does: a fault in the `ssh-key` crate.
    #[error("can't make an SSH host key: {0}")]
    Make(#[from] russh::keys::ssh_key::Error),
    /// The text is no private key in OpenSSH's form, or not all of one.
    #[error("not a whole private key in OpenSSH's form")]
    Unreadable,
    /// A passphrase would be needed, which nobody is there to give.
    #[error("the key is locked with a passphrase")]
    Locked,
    /// A key of another kind.
    #[error("the key is not an Ed25519 key")]
    OtherKind,
}

impl HostKey {
    /// A new key from `rng`.
    pub fn generate(rng: &mut dyn rand::CryptoRng) -> Result<Self, HostKeyError> {
        let mut seed = Zeroizing::new([0; 32]);
        rng.fill_bytes(seed.as_mut());
        let pair = KeypairData::Ed25519(Ed25519Keypair::from_seed(&seed));
        Self::new(PrivateKey::new(pair, "")?)
    }

    /// Reads a private key in OpenSSH's form.
    pub fn from_openssh(text: &[u8]) -> Result<Self, HostKeyError> {
        let private = PrivateKey::from_openssh(text).map_err(|_| HostKeyError::Unreadable)?;
        if private.is_encrypted() {
            return Err(HostKeyError::Locked);
        }
        if private.algorithm() != Algorithm::Ed25519 {
            return Err(HostKeyError::OtherKind);
        }
        Self::new(private)
    }

    /// The private key in OpenSSH's form.
    pub fn to_openssh(&self) -> Result<Zeroizing<String>, HostKeyError> {
        Ok(self.private.to_openssh(LineEnding::LF)?)
    }

    fn new(private: PrivateKey) -> Result<Self, HostKeyError> {
        let public_line =
            PublicKey::new(private.public_key().key_data().clone(), "").to_openssh()?.trim_end().to_owned();
        Ok(Self { private, public_line })
    }

    /// The public half in the form of `authorized_keys` without a comment, as Hostinfo's `sshHostKeys` has it.
    pub fn public_line(&self) -> &str {
        &self.public_line
    }

    pub(crate) fn private(&self) -> &PrivateKey {
        &self.private
    }
}

impl fmt::Debug for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HostKey").field(&self.public_line).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_a_public_line_and_no_shown_secret() {
        let key = HostKey::generate(&mut rand::rng()).unwrap();
        let words: Vec<&str> = key.public_line().split(' ').collect();
        assert_eq!((words.len(), words[0]), (2, "ssh-ed25519"));
        assert!(words[1].starts_with("AAAAC3NzaC1lZDI1NTE5AAAAI"));
        assert_eq!(format!("{key:?}"), format!("HostKey({:?})", key.public_line()));
        assert_ne!(key.public_line(), HostKey::generate(&mut rand::rng()).unwrap().public_line());
    }
}
