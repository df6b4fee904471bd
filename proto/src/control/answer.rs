//! What control's answers mean (`control/controlclient/direct.go`).

use std::time::Duration;

use rand_core::CryptoRng;

use super::backoff::between;
use super::retry_after;
use crate::tailcfg::{RegisterResponse, Timestamp, UserProfile};

/// Bytes of a refusal's text that are kept, as in Go.
const MAX_TEXT: usize = 200;
/// Bytes of a login page's URL at most: far more than any has.
const MAX_LOGIN_URL: usize = 2048;
/// How long to wait where control doesn't say it believably: at random between these, as in Go.
const RETRY_AFTER_UNKNOWN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(10));

/// What control's answer to a registration means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegisterOutcome {
    /// The node key is let in.
    Registered {
        /// Whose the node is.
        user: UserProfile,
        /// `false`: an admin has yet to approve the machine. Not an error; the netmap says when it is done.
        machine_authorized: bool,
    },
    /// The node key has ended: register again with a new one, naming this as the old.
    NodeKeyExpired,
    /// A person has to log in at this URL, then the same registration is sent again with it as `Followup`.
    NeedsLogin {
        /// An `http` or `https` URL of printable ASCII, and otherwise untrusted text.
        url: String,
    },
    /// A person has to log in, and control names no place that a browser could be sent to.
    BadLoginUrl,
    /// Tailnet lock is on, and control wants the new node key signed by the one before, which nixtail can't do.
    NeedsSignature,
    /// Control won't have this node: a bad, used or ended auth key, or a tag that it may not have. Trying again
    /// changes nothing.
    Refused {
        /// In control's words, fit to be shown.
        reason: String,
    },
}

/// Reads control's answer to a registration, in the order of `doLogin`.
#[must_use]
pub fn register_outcome(response: RegisterResponse) -> RegisterOutcome {
    if !response.error.is_empty() {
        RegisterOutcome::Refused { reason: printable(response.error.as_bytes()) }
    } else if !response.node_key_signature.is_empty() {
        RegisterOutcome::NeedsSignature
    } else if response.node_key_expired {
        RegisterOutcome::NodeKeyExpired
    } else if !response.auth_url.is_empty() {
        let url = response.auth_url;
        if is_login_url(&url) { RegisterOutcome::NeedsLogin { url } } else { RegisterOutcome::BadLoginUrl }
    } else {
        RegisterOutcome::Registered { user: response.user, machine_authorized: response.machine_authorized }
    }
}

/// Whether a person may be told to open this.
fn is_login_url(url: &str) -> bool {
    let has_scheme = url.starts_with("https://") || url.starts_with("http://");
    has_scheme && url.len() <= MAX_LOGIN_URL && url.bytes().all(|byte| byte.is_ascii_graphic())
}

/// An HTTP status that is no success.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AnswerError {
    /// 404 to a map request: control doesn't know the node (any more). Only a new registration helps.
    #[error("control doesn't know this node any more")]
    NotRegistered,
    /// 429 or 503: control wants to be left in peace for a while.
    #[error("control is busy and wants to be asked again in {} s", .0.as_secs())]
    Later(Duration),
    /// Another 4xx: control won't do it.
    #[error("control refused with HTTP {status}: {text}")]
    Refused {
        /// The status.
        status: u16,
        /// In control's words, fit to be shown.
        text: String,
    },
    /// Control, or something between, is broken at the moment.
    #[error("control failed with HTTP {status}: {text}")]
    Failed {
        /// The status.
        status: u16,
        /// In control's words, fit to be shown.
        text: String,
    },
}

/// Reads an HTTP status with what it needs: the header `Retry-After`, the beginning of the body, and our clock, where the
/// header has a date.
///
/// # Errors
/// What the status means, if it isn't 200.
pub fn judge_status(
    status: u16,
    retry_after: Option<&str>,
    body: &[u8],
    clock: Timestamp,
    rng: &mut dyn CryptoRng,
) -> Result<(), AnswerError> {
    match status {
        200 => Ok(()),
        404 => Err(AnswerError::NotRegistered),
        429 | 503 => {
            let told = retry_after.and_then(|header| retry_after::parse(header, clock));
            let (least, most) = RETRY_AFTER_UNKNOWN;
            Err(AnswerError::Later(told.unwrap_or_else(|| between(least, most, rng))))
        }
        400..500 => Err(AnswerError::Refused { status, text: printable(body) }),
        _ => Err(AnswerError::Failed { status, text: printable(body) }),
    }
}

/// Text from control, fit to be shown: at most 200 bytes of it, without control characters.
#[must_use]
pub fn printable(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text.get(..MAX_TEXT).unwrap_or(text)).into_owned();
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
