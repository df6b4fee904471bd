//! What the answers of Tailscale's API and of GitHub's token endpoint mean.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;

use super::Claims;
use crate::control::printable;
use crate::secret::Secret;

/// A longer `Retry-After` isn't believed, as with control.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// An HTTP answer.
#[derive(Debug, Clone, Copy)]
pub struct ApiAnswer<'a> {
    /// Its status.
    pub status: u16,
    /// Its header `Retry-After`.
    pub retry_after: Option<&'a str>,
    /// Its body.
    pub body: &'a [u8],
}

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApiStep {
    /// GitHub for an id token.
    IdToken,
    /// The API for an OAuth client's access token.
    AccessToken,
    /// The API for an access token in exchange for an id token.
    Exchange,
    /// The API for an auth key.
    AuthKey,
}

impl fmt::Display for ApiStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IdToken => "asking GitHub for an id token",
            Self::AccessToken => "asking for the OAuth client's access token",
            Self::Exchange => "exchanging the id token for an access token",
            Self::AuthKey => "making an auth key",
        })
    }
}

/// Why there is no auth key. Each says what to change, and where; texts of the other side are bounded and printable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    /// The OAuth client doesn't exist (any more).
    #[error(
        "Tailscale doesn't know this OAuth client ({text}): its secret isn't whole, or it was revoked; \
         make another one under Trust credentials in the admin console, with the scope \"auth_keys\" and the tags of these nodes"
    )]
    Secret {
        /// In the API's words.
        text: String,
    },
    /// The federated identity doesn't exist.
    #[error(
        "Tailscale doesn't know the client id of this workload identity ({text}); compare TS_CLIENT_ID with the \
         federated identity under Trust credentials in the admin console"
    )]
    ClientId {
        /// In the API's words.
        text: String,
    },
    /// The federated identity is for somebody else.
    #[error(
        "Tailscale doesn't accept who this is for that client id ({text}); under Trust credentials in the admin console, \
         compare the federated identity with the token: {}",
        .claims.as_ref().map_or_else(|| "its claims can't be read".to_owned(), ToString::to_string)
    )]
    Identity {
        /// In the API's words.
        text: String,
        /// What our token says.
        claims: Option<Claims>,
    },
    /// What was given as an id token isn't one, to the API.
    #[error(
        "Tailscale can't read the id token ({text}); give it as the identity provider made it, whole, in TS_ID_TOKEN"
    )]
    IdToken {
        /// In the API's words.
        text: String,
    },
    /// The client may not make auth keys.
    #[error(
        "this client may not make auth keys ({text}); under Trust credentials in the admin console, give it the scope \
         \"auth_keys\" with write access"
    )]
    Scope {
        /// In the API's words.
        text: String,
    },
    /// It may, for other tags.
    #[error(
        "this client may not make auth keys for {} ({text}); ask for all tags of the client and no other (Trust credentials \
         in the admin console), or for such as one of its tags owns in tagOwners (Access controls); each must stand there",
        .tags.join(" ")
    )]
    Tags {
        /// What was asked for.
        tags: Vec<String>,
        /// In the API's words.
        text: String,
    },
    /// GitHub won't say who this job is.
    #[error("GitHub gives this job no id token (HTTP {status}: {text}); give the job \"permissions: id-token: write\"")]
    Job {
        /// The status.
        status: u16,
        /// In GitHub's words.
        text: String,
    },
    /// Too many asked too much.
    #[error("{step}: too many requests for now{}", retry(*.after))]
    RateLimited {
        /// What was asked for.
        step: ApiStep,
        /// When to ask again.
        after: Option<Duration>,
    },
    /// The other side, or something between, is broken at the moment.
    #[error(
        "{step}: the other side failed with HTTP {status}: {text}; try again, or look at the service's status page"
    )]
    Failed {
        /// What was asked for.
        step: ApiStep,
        /// The status.
        status: u16,
        /// When to ask again.
        after: Option<Duration>,
        /// In its words.
        text: String,
    },
    /// What answers isn't an API: a proxy's page, a portal.
    #[error(
        "{step}: HTTP {status} with something that isn't JSON (\"{start}\"); a proxy or a portal answers in its place: \
         let this machine through to it, or set HTTPS_PROXY and NO_PROXY rightly"
    )]
    NotJson {
        /// What was asked for.
        step: ApiStep,
        /// The status.
        status: u16,
        /// How it begins.
        start: String,
    },
    /// There is none.
    #[error(
        "{step}: there is no Tailscale API at that address (HTTP 404); OAuth clients and workload identities are Tailscale's \
         own, and with headscale it takes an auth key; else compare the login server, or baseURL, with the API's address"
    )]
    NoApi {
        /// What was asked for.
        step: ApiStep,
    },
    /// A success without what was asked for.
    #[error("{step}: the answer has no {missing}; is that address the right one?")]
    Incomplete {
        /// What was asked for.
        step: ApiStep,
        /// What isn't there.
        missing: &'static str,
    },
    /// Another refusal.
    #[error(
        "{step} was refused with HTTP {status}: {text}; look at the client under Trust credentials in the admin console"
    )]
    Refused {
        /// What was asked for.
        step: ApiStep,
        /// The status.
        status: u16,
        /// In its words.
        text: String,
    },
}

impl ApiError {
    /// Whether nothing changes by trying again, because the other side decided so.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        !matches!(self, Self::RateLimited { .. } | Self::Failed { .. }) && !self.is_configuration()
    }

    /// Whether nothing changes by trying again, because what answers isn't who was meant.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        matches!(self, Self::NotJson { .. } | Self::NoApi { .. } | Self::Incomplete { .. })
    }

    /// When the other side wants to be asked again.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { after, .. } | Self::Failed { after, .. } => *after,
            _ => None,
        }
    }
}

/// An access token, in exchange for an OAuth secret.
///
/// # Errors
/// What the answer means, if it has none.
pub fn read_access_token(answer: &ApiAnswer<'_>) -> Result<Secret, ApiError> {
    let found = read(answer, ApiStep::AccessToken, "access token", |fields| fields.access_token);
    found.map_err(|error| match error {
        ApiError::Refused { status: 400 | 401 | 403, text, .. } => ApiError::Secret { text },
        other => other,
    })
}

/// An access token, in exchange for an id token with these claims.
///
/// # Errors
/// What the answer means, if it has none.
pub fn read_exchange(answer: &ApiAnswer<'_>, claims: Option<Claims>) -> Result<Secret, ApiError> {
    let found = read(answer, ApiStep::Exchange, "access token", |fields| fields.access_token);
    found.map_err(|error| {
        let ApiError::Refused { step, status, text } = error else { return error };
        let lower = text.to_ascii_lowercase();
        match status {
            400 | 401 if lower.contains("jwt") => ApiError::IdToken { text },
            400 | 401 if lower.contains("client") => ApiError::ClientId { text },
            401 | 403 => ApiError::Identity { text, claims },
            _ => ApiError::Refused { step, status, text },
        }
    })
}

/// An auth key for nodes with `tags`.
///
/// # Errors
/// What the answer means, if it has none.
pub fn read_auth_key(answer: &ApiAnswer<'_>, tags: &[String]) -> Result<Secret, ApiError> {
    let found = read(answer, ApiStep::AuthKey, "key", |fields| fields.key);
    found.map_err(|error| {
        let ApiError::Refused { step, status, text } = error else { return error };
        match status {
            400 if text.to_ascii_lowercase().contains("tag") => ApiError::Tags { tags: tags.to_vec(), text },
            403 => ApiError::Scope { text },
            _ => ApiError::Refused { step, status, text },
        }
    })
}

/// An id token of GitHub's.
///
/// # Errors
/// What the answer means, if it has none.
pub fn read_id_token(answer: &ApiAnswer<'_>) -> Result<Secret, ApiError> {
    let found = read(answer, ApiStep::IdToken, "id token", |fields| fields.value);
    found.map_err(|error| match error {
        ApiError::Refused { status, text, .. } => ApiError::Job { status, text },
        ApiError::NoApi { .. } => ApiError::Job { status: 404, text: "not found".to_owned() },
        other => other,
    })
}

/// What any of the answers may have.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Fields {
    access_token: Option<Secret>,
    key: Option<Secret>,
    value: Option<Secret>,
    /// Tailscale's and GitHub's word on a refusal.
    message: Option<String>,
    /// OAuth's (RFC 6749 §5.2).
    error: Option<String>,
    error_description: Option<String>,
}

fn read(
    answer: &ApiAnswer<'_>,
    step: ApiStep,
    missing: &'static str,
    wanted: impl FnOnce(Fields) -> Option<Secret>,
) -> Result<Secret, ApiError> {
    let &ApiAnswer { status, retry_after, body } = answer;
    let after = retry_after.and_then(believable);
    // Not `Fields` at once: a field of another type is no reason to blame a proxy.
    let is_json = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(body).is_ok();
    match status {
        429 => return Err(ApiError::RateLimited { step, after }),
        404 => return Err(ApiError::NoApi { step }),
        500.. => return Err(ApiError::Failed { step, status, after, text: words(body) }),
        // The status alone says enough.
        400.. if body.is_empty() => return Err(ApiError::Refused { step, status, text: "no words".to_owned() }),
        _ if !is_json => return Err(ApiError::NotJson { step, status, start: printable(body) }),
        _ => {}
    }
    let fields: Fields = serde_json::from_slice(body).unwrap_or_default();
    // Some servers tell of an error with a success (RFC 6749 wants 400).
    if !(200..300).contains(&status) || fields.error.is_some() {
        return Err(ApiError::Refused { step, status, text: words(body) });
    }
    wanted(fields).filter(is_plain).ok_or(ApiError::Incomplete { step, missing })
}

/// What can be sent in a header or a form.
fn is_plain(secret: &Secret) -> bool {
    !secret.expose().is_empty() && secret.expose().chars().all(|c| c.is_ascii_graphic())
}

/// The words of a refusal, out of its JSON where it has any.
fn words(body: &[u8]) -> String {
    let fields: Fields = serde_json::from_slice(body).unwrap_or_default();
    let text = match (fields.message, fields.error, fields.error_description) {
        (Some(message), _, _) => message,
        (None, Some(error), Some(description)) => format!("{error}: {description}"),
        (None, Some(error), None) => error,
        (None, None, _) => return printable(body),
    };
    printable(text.as_bytes())
}

/// A wait in seconds, unless it is none, or longer than anybody waits.
fn believable(header: &str) -> Option<Duration> {
    let wait = Duration::from_secs(header.trim().parse().ok()?);
    (!wait.is_zero() && wait <= LONGEST_WAIT).then_some(wait)
}

fn retry(after: Option<Duration>) -> String {
    match after {
        Some(after) => format!("; it wants to be asked again in {} s", after.as_secs()),
        None => "; try again in a while".to_owned(),
    }
}
