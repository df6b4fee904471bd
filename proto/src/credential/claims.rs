//! What an identity provider's token says of who runs this. None of it is secret: the signature behind it is.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use crate::control::printable;
use crate::secret::Secret;

/// The claims that a federated identity is compared with (RFC 7519 §4.1). Nobody has checked them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    issuer: String,
    subject: String,
    audience: String,
    /// When the token ended, if it has by the clock that was given.
    ended: Option<Duration>,
}

#[derive(Deserialize)]
struct Wire {
    #[serde(default)]
    iss: String,
    #[serde(default)]
    sub: String,
    #[serde(default)]
    aud: serde_json::Value,
    #[serde(default)]
    exp: serde_json::Value,
}

impl Claims {
    /// Reads a token's claims; `now` is the machine's clock. `None` where it has none that can be read.
    #[must_use]
    pub fn of(id_token: &Secret, now: SystemTime) -> Option<Self> {
        let payload = id_token.expose().split('.').nth(1)?.trim_end_matches('=');
        let Wire { iss, sub, aud, exp } = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
        let audience = match aud {
            serde_json::Value::String(audience) => audience,
            serde_json::Value::Array(audiences) => {
                audiences.iter().filter_map(serde_json::Value::as_str).collect::<Vec<_>>().join(" ")
            }
            _ => String::new(),
        };
        let end = exp.as_u64().and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
        let ended = end.and_then(|end| now.duration_since(end).ok());
        let [issuer, subject, audience] = [iss, sub, audience].map(|text| printable(text.as_bytes()));
        Some(Self { issuer, subject, audience, ended })
    }
}

impl fmt::Display for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { issuer, subject, audience, ended } = self;
        write!(f, "issuer \"{issuer}\", subject \"{subject}\", audience \"{audience}\"")?;
        match ended {
            Some(ended) => write!(f, ", and it ended {} s ago by this machine's clock", ended.as_secs()),
            None => Ok(()),
        }
    }
}
