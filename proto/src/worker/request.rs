//! The beginning of a client's request: whether it asks for builds, and for which.

use super::{MAX_BUILDS, Protocol};
use crate::worker::reply::Kind;

/// The longest text that names a derivation and its outputs. A store path has 211 characters and its folder's; lists of
/// outputs are short.
const MAX_ASKED: usize = 4096;

/// Characters of Nix's base 32, of which a store path's hash has 32 (`nix-base-32.hh`).
const HASH_CHARACTERS: &[u8] = b"0123456789abcdfghijklmnpqrsvwxyz";
const HASH_LENGTH: usize = 32;
/// The longest name of a store path (`path.hh`, `StorePath::MaxPathLen`).
const MAX_NAME: usize = 211;

/// A request as far as it has come.
#[derive(Debug, Default)]
pub(super) struct Request {
    /// Bytes that aren't read yet.
    buffer: Vec<u8>,
    head: Head,
    wanted: Vec<Wanted>,
}

#[derive(Debug, Clone, Copy, Default)]
enum Head {
    /// The operation's number comes next.
    #[default]
    Operation,
    /// The number of paths comes next.
    Count(Kind),
    /// So many paths come next.
    Paths(Kind, u64),
}

/// A derivation that is to be built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Its name.
    pub(super) name: String,
    /// The very text that asked for it, by which an answer may name it again.
    pub(super) asked: Vec<u8>,
}

/// What a request turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// That can't be said yet.
    Incomplete,
    /// Not one for builds.
    Other,
    /// It asks for these; what follows of it doesn't matter.
    Builds(Kind, Vec<Wanted>),
}

impl Request {
    /// Forgets what came.
    pub(super) fn clear(&mut self) {
        self.buffer.clear();
        self.wanted.clear();
        self.head = Head::Operation;
    }

    /// More of it. At most the longest text that is read is kept of what comes.
    pub(super) fn push(&mut self, protocol: Protocol, mut bytes: &[u8]) -> Parsed {
        loop {
            let piece;
            (piece, bytes) = bytes.split_at(bytes.len().min(MAX_ASKED));
            self.buffer.extend_from_slice(piece);
            let mut read = 0;
            let parsed = self.parse(protocol, &mut read);
            self.buffer.drain(..read);
            match parsed {
                Parsed::Incomplete if !bytes.is_empty() => {}
                parsed => return parsed,
            }
        }
    }

    fn parse(&mut self, protocol: Protocol, read: &mut usize) -> Parsed {
        loop {
            let rest = self.buffer.get(*read..).unwrap_or_default();
            let Some((word, after)) = rest.split_first_chunk() else { return Parsed::Incomplete };
            let word = u64::from_le_bytes(*word);
            match self.head {
                Head::Operation => {
                    *read += 8;
                    self.head = match Kind::of(protocol, word) {
                        None => return Parsed::Other,
                        Some(kind @ (Kind::Derivation | Kind::ServedDerivation)) => Head::Paths(kind, 1),
                        Some(kind) => Head::Count(kind),
                    };
                }
                Head::Count(kind) => {
                    *read += 8;
                    self.head = Head::Paths(kind, word);
                }
                Head::Paths(kind, left) => {
                    if left == 0 || self.wanted.len() >= MAX_BUILDS {
                        return self.builds(kind);
                    }
                    let Some(length) = usize::try_from(word).ok().filter(|length| *length <= MAX_ASKED) else {
                        // Names that long are nobody's; those before them were asked for all the same.
                        return self.builds(kind);
                    };
                    let Some(text) = after.get(..length.next_multiple_of(8)) else { return Parsed::Incomplete };
                    let text = text.get(..length).unwrap_or_default();
                    // A path that is no derivation's is to be there, not to be built.
                    if let Some(name) = derivation_name(text) {
                        self.wanted.push(Wanted { name, asked: text.to_vec() });
                    }
                    *read += 8 + length.next_multiple_of(8);
                    if left == 1 {
                        return self.builds(kind);
                    }
                    self.head = Head::Paths(kind, left - 1);
                }
            }
        }
    }

    fn builds(&mut self, kind: Kind) -> Parsed {
        let wanted = std::mem::take(&mut self.wanted);
        if wanted.is_empty() { Parsed::Other } else { Parsed::Builds(kind, wanted) }
    }
}

/// The name in `/nix/store/HASH-NAME.drv`, or in that followed by `!` (or `^`) and outputs.
fn derivation_name(asked: &[u8]) -> Option<String> {
    let path = asked.split(|byte| matches!(byte, b'!' | b'^')).next()?;
    let file = path.rsplit(|byte| *byte == b'/').next()?;
    let (hash, name) = file.split_at_checked(HASH_LENGTH)?;
    let name = name.strip_prefix(b"-")?.strip_suffix(b".drv")?;
    let in_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-._?=".contains(byte);
    let fits = hash.iter().all(|byte| HASH_CHARACTERS.contains(byte))
        && (1..=MAX_NAME).contains(&name.len())
        && name.iter().all(in_name);
    fits.then(|| name.iter().map(|byte| char::from(*byte)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_derivation_is_known_by_the_form_of_its_path() {
        let hash = "0".repeat(32);
        let name = |text: String| derivation_name(text.as_bytes());
        assert_eq!(name(format!("/nix/store/{hash}-hello-2.12.drv")).as_deref(), Some("hello-2.12"));
        assert_eq!(name(format!("/nix/store/{hash}-a.drv!out,dev")).as_deref(), Some("a"));
        assert_eq!(name(format!("/home/bob/s/{hash}-a.drv^*")).as_deref(), Some("a"));
        for none in [
            format!("/nix/store/{hash}-hello"),
            format!("/nix/store/{hash}-.drv"),
            format!("/nix/store/{}-a.drv", "e".repeat(32)),
            format!("/nix/store/{hash}-a b.drv"),
            format!("/nix/store/{hash}-{}.drv", "x".repeat(300)),
            String::new(),
        ] {
            assert_eq!(name(none.clone()), None, "{none}");
        }
    }
}
