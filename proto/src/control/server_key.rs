//! Control's answer to `/key?v=…`.

use serde::Deserialize;

use crate::key::MachinePublic;

#[derive(Deserialize)]
struct KeyAnswer {
    /// Not `legacyPublicKey`, which is of a protocol long gone.
    #[serde(rename = "publicKey")]
    public_key: MachinePublic,
}

/// The machine key that control tells of itself. `None`: it tells none, as very old servers do, or what isn't one.
#[must_use]
pub fn read_server_key(json: &[u8]) -> Option<MachinePublic> {
    let answer: KeyAnswer = serde_json::from_slice(json).ok()?;
    (!answer.public_key.is_zero()).then_some(answer.public_key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_public_key_counts_and_the_legacy_one_does_not() {
        let (zero, key) = (format!("mkey:{}", "0".repeat(64)), format!("mkey:{}", "2a".repeat(32)));
        let read = |legacy: &str, public: &str| {
            read_server_key(format!(r#"{{"legacyPublicKey":"{legacy}","publicKey":"{public}","more":1}}"#).as_bytes())
        };
        assert_eq!(read(&zero, &key).map(|key| key.to_string()), Some(key.clone()));
        assert_eq!(read(&key, &zero), None);
        for other in [format!(r#"{{"legacyPublicKey":"{key}"}}"#), key, String::new(), "<html>".to_owned()] {
            assert_eq!(read_server_key(other.as_bytes()), None, "{other}");
        }
    }
}
