//! The three Curve25519 keys of a node, their text forms, and nothing of how they are used.
//!
//! A node has a *machine key* (Noise with control only), a *node key* (its WireGuard static key and its identity to
//! DERP, control and peers) and a *disco key* (path discovery, new with every start). They are distinct types, so that
//! one can't be passed for another. Text forms are those of `tailscale/tailscale` `types/key`: a prefix and 64
//! lower-case hex digits.
//!
//! Private keys are zeroed on drop, have no text form but the explicit one of [`NodePrivate::expose_hex`] and its like
//! (for a state file), and print as `redacted`.

use std::fmt;
use std::str::FromStr;

use rand_core::CryptoRng;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroize;

/// Bytes of a Curve25519 key, public or private.
pub const KEY_LEN: usize = 32;

/// A text that is no key of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The prefix that names the kind is missing or another one's.
    #[error("not a {kind}: it must begin with \"{prefix}\"")]
    Prefix {
        /// What was wanted, in words.
        kind: &'static str,
        /// The prefix that it must have.
        prefix: &'static str,
    },
    /// What follows the prefix isn't 64 hex digits.
    #[error("not a {kind}: after \"{prefix}\" there must be 64 hex digits")]
    Hex {
        /// What was wanted, in words.
        kind: &'static str,
        /// The prefix that it has.
        prefix: &'static str,
    },
}

macro_rules! public_key {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name([u8; KEY_LEN]);

        impl $name {
            /// What the text form begins with.
            pub const PREFIX: &'static str = $prefix;

            /// The key with these raw bytes.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; KEY_LEN]) -> Self {
                Self(bytes)
            }

            /// The raw bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; KEY_LEN] {
                &self.0
            }

            /// Whether this is the all-zero key, which Go writes where there is none.
            #[must_use]
            pub fn is_zero(&self) -> bool {
                self.0 == [0; KEY_LEN]
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str($prefix)?;
                write_hex(f, &self.0)
            }
        }

        /// Short, as logs want it: the prefix and the first eight hex digits.
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str($prefix)?;
                write_hex(f, &self.0[..4])
            }
        }

        impl FromStr for $name {
            type Err = KeyError;

            fn from_str(text: &str) -> Result<Self, KeyError> {
                parse(text, $kind, $prefix).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        /// The empty string is the zero key, as Go reads it.
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                if text.is_empty() {
                    return Ok(Self::default());
                }
                text.parse().map_err(D::Error::custom)
            }
        }
    };
}

macro_rules! private_key {
    ($(#[$doc:meta])* $name:ident, $public:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq)]
        pub struct $name([u8; KEY_LEN]);

        impl $name {
            /// A new key out of `rng`.
            #[must_use]
            pub fn generate(rng: &mut dyn CryptoRng) -> Self {
                let mut bytes = [0; KEY_LEN];
                rng.fill_bytes(&mut bytes);
                Self::from_bytes(bytes)
            }

            /// The key with these raw bytes, clamped as RFC 7748 §5 asks.
            #[must_use]
            pub const fn from_bytes(mut bytes: [u8; KEY_LEN]) -> Self {
                bytes[0] &= 0xf8;
                bytes[31] = (bytes[31] & 0x7f) | 0x40;
                Self(bytes)
            }

            /// The raw bytes, for the code that does the cryptography.
            #[must_use]
            pub const fn expose_bytes(&self) -> &[u8; KEY_LEN] {
                &self.0
            }

            /// `privkey:` and 64 hex digits, for a state file and nothing else.
            #[must_use]
            pub fn expose_hex(&self) -> zeroize::Zeroizing<String> {
                let mut text = String::with_capacity(PRIVATE_PREFIX.len() + 2 * KEY_LEN);
                text.push_str(PRIVATE_PREFIX);
                for byte in self.0 {
                    text.push(char::from(HEX[usize::from(byte >> 4)]));
                    text.push(char::from(HEX[usize::from(byte & 15)]));
                }
                zeroize::Zeroizing::new(text)
            }

            /// Reads back what `expose_hex` wrote.
            ///
            /// # Errors
            /// When `text` isn't `privkey:` and 64 hex digits.
            pub fn from_hex(text: &str) -> Result<Self, KeyError> {
                parse(text, $kind, PRIVATE_PREFIX).map(Self::from_bytes)
            }

            /// The public key that belongs to it.
            #[must_use]
            pub fn public(&self) -> $public {
                let secret = x25519_dalek::StaticSecret::from(self.0);
                $public(x25519_dalek::PublicKey::from(&secret).to_bytes())
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                self.0.zeroize();
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(redacted)"))
            }
        }
    };
}

public_key! {
    /// Who a machine is to control: the static key of the ts2021 handshake.
    MachinePublic, "mkey:", "machine key"
}
public_key! {
    /// Who a node is to everybody: its WireGuard key and its address on a DERP relay.
    NodePublic, "nodekey:", "node key"
}
public_key! {
    /// Who a node is to path discovery.
    DiscoPublic, "discokey:", "disco key"
}
private_key! {
    /// The private half of a [`MachinePublic`].
    MachinePrivate, MachinePublic, "machine private key"
}
private_key! {
    /// The private half of a [`NodePublic`].
    NodePrivate, NodePublic, "node private key"
}
private_key! {
    /// The private half of a [`DiscoPublic`].
    DiscoPrivate, DiscoPublic, "disco private key"
}

const PRIVATE_PREFIX: &str = "privkey:";
const HEX: &[u8; 16] = b"0123456789abcdef";

fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

fn parse(text: &str, kind: &'static str, prefix: &'static str) -> Result<[u8; KEY_LEN], KeyError> {
    let hex = text.strip_prefix(prefix).ok_or(KeyError::Prefix { kind, prefix })?.as_bytes();
    let wrong = || KeyError::Hex { kind, prefix };
    if hex.len() != 2 * KEY_LEN {
        return Err(wrong());
    }
    let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let mut bytes = [0; KEY_LEN];
    for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
        let (high, low) = (digit(pair[0]).ok_or_else(wrong)?, digit(pair[1]).ok_or_else(wrong)?);
        *byte = high << 4 | low;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_forms_round_trip() {
        let private = NodePrivate::from_bytes([7; 32]);
        let public = private.public();
        assert_eq!(public.to_string().parse(), Ok(public));
        assert_eq!(NodePrivate::from_hex(&private.expose_hex()), Ok(private));
    }

    #[test]
    fn one_kind_is_not_another() {
        let text = MachinePublic::from_bytes([1; 32]).to_string();
        assert!(matches!(text.parse::<NodePublic>(), Err(KeyError::Prefix { .. })));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for text in [
            "",
            "nodekey:",
            "nodekey:12",
            &format!("nodekey:{}", "g".repeat(64)),
            &format!("nodekey:{}", "é".repeat(32)),
        ] {
            assert!(text.parse::<NodePublic>().is_err(), "{text}");
        }
    }

    #[test]
    fn empty_json_is_the_zero_key() {
        let key: NodePublic = serde_json::from_str("\"\"").unwrap();
        assert!(key.is_zero());
    }

    #[test]
    fn debug_shows_nothing_secret() {
        let shown = format!("{:?}", DiscoPrivate::from_bytes([0x5a; 32]));
        assert_eq!(shown, "DiscoPrivate(redacted)");
    }
}
