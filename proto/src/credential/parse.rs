//! What the text of a credential means.

use super::attributes::Attributes;
use super::{Credential, CredentialError, OauthSecret};
use crate::secret::Secret;

/// What an OAuth client's secret begins with.
const OAUTH_PREFIX: &str = "tskey-client-";
/// What separates an auth key from the tailnet-lock signature that may be wrapped with it. It never goes to control.
const LOCK_SUFFIX: &str = "--TL";
/// Keys of Tailscale's for other things, by their beginnings.
const OTHERS: [(&str, &str); 3] =
    [("tskey-api-", "an API access token"), ("tskey-scim-", "a SCIM key"), ("tskey-webhook-", "a webhook's secret")];

impl Credential {
    /// Reads an auth key or an OAuth secret; `from` is the flag or variable that gave it.
    ///
    /// # Errors
    /// When it is neither.
    pub fn parse(from: &str, text: &str) -> Result<Self, CredentialError> {
        let text = one_word(from, "auth key", text)?;
        if text.starts_with(OAUTH_PREFIX) {
            return Self::parse_oauth_secret(from, text);
        }
        if let Some((_, what)) = OTHERS.iter().find(|(prefix, _)| text.starts_with(prefix)) {
            let next = "make an auth key (Keys in the admin console), or an OAuth client (Trust credentials)";
            return Err(CredentialError::Other { from: from.to_owned(), what, next });
        }
        let key = text.split_once(LOCK_SUFFIX).map_or(text, |(key, _)| key);
        Ok(Self::AuthKey(Secret::new(one_word(from, "auth key", key)?.to_owned())))
    }

    /// Reads an OAuth secret, where nothing else will do.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse_oauth_secret(from: &str, text: &str) -> Result<Self, CredentialError> {
        let text = one_word(from, "OAuth client's secret", text)?;
        if !text.starts_with(OAUTH_PREFIX) {
            let (what, next) = if text.starts_with("tskey-auth-") {
                ("an auth key", "set TS_AUTHKEY to it instead")
            } else {
                (
                    "no OAuth client's secret",
                    "a secret begins with tskey-client-; make one under Trust credentials in the admin console",
                )
            };
            return Err(CredentialError::Other { from: from.to_owned(), what, next });
        }
        let (secret, query) = text.split_once('?').unwrap_or((text, ""));
        let attributes = Attributes::of_oauth_secret(from, query)?;
        Ok(Self::OauthSecret(OauthSecret { secret: Secret::new(secret.to_owned()), attributes }))
    }
}

/// Reads a federated identity's client id.
pub(super) fn client_id(from: &str, text: &str) -> Result<(String, Attributes), CredentialError> {
    let text = one_word(from, "client id", text)?;
    let (id, query) = match text.split_once('?') {
        Some((id, query)) => (id, Some(query)),
        None => (text, None),
    };
    let attributes = Attributes::of_client_id(from, query)?;
    Ok((one_word(from, "client id", id)?.to_owned(), attributes))
}

/// Reads an identity provider's token: a JWT, three parts with dots between them.
///
/// # Errors
/// When it is none.
pub fn id_token(from: &str, text: &str) -> Result<Secret, CredentialError> {
    const WHAT: &str = "id token (a JWT: three parts with dots between them)";
    let text = one_word(from, WHAT, text)?;
    let is_base64 = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '=');
    let is_part = |part: &str| !part.is_empty() && part.chars().all(is_base64);
    if text.split('.').count() != 3 || !text.split('.').all(is_part) {
        return Err(CredentialError::Malformed { from: from.to_owned(), what: WHAT });
    }
    Ok(Secret::new(text.to_owned()))
}

/// A text without the space around it, if there is none within.
pub(super) fn one_word<'a>(from: &str, what: &'static str, text: &'a str) -> Result<&'a str, CredentialError> {
    let text = text.trim();
    if text.is_empty() || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(CredentialError::Malformed { from: from.to_owned(), what });
    }
    Ok(text)
}
