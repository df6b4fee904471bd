//! What is asked of Tailscale's API (`/api/v2`) to get an auth key.

use super::form;
use super::{Attributes, GitHubJob, OauthSecret, WorkloadIdentity};
use crate::secret::Secret;

/// Where the API is for an OAuth client that says nothing else.
const API: &str = "https://api.tailscale.com";
/// Seconds that a key is good for. It is used at once; one that was lost on the way shouldn't be good for the usual 90 days.
const KEY_LIFETIME: u32 = 3600;

/// A POST of a form, answered with an access token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenCall {
    /// Where to.
    pub url: String,
    /// `application/x-www-form-urlencoded`.
    pub body: Secret,
}

impl TokenCall {
    /// The token of an OAuth client. What identifies it is the secret; the client id is a part of that.
    #[must_use]
    pub fn of_client(client: &OauthSecret) -> Self {
        let secret = client.secret.expose();
        let id = secret.split('-').nth(2).unwrap_or_default();
        let body = form::write(&[("grant_type", "client_credentials"), ("client_id", id), ("client_secret", secret)]);
        let url = format!("{}/api/v2/oauth/token", client.base_url());
        Self { url, body: Secret::new(body) }
    }

    /// The token that `id_token` is good for.
    #[must_use]
    pub fn of_identity(identity: &WorkloadIdentity, login_server: &str, id_token: &Secret) -> Self {
        let body = form::write(&[("client_id", &identity.client_id), ("jwt", id_token.expose())]);
        let url = format!("{}/api/v2/oauth/token-exchange", WorkloadIdentity::base_url(login_server));
        Self { url, body: Secret::new(body) }
    }
}

/// A POST of JSON with the access token, answered with an auth key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyCall {
    /// Where to.
    pub url: String,
    /// `application/json`.
    pub body: String,
}

impl KeyCall {
    /// Asks for a key that lets one node in, with exactly these tags. `ephemeral` is what the node wants where `attributes`
    /// leave it open.
    #[must_use]
    pub fn new(base_url: &str, attributes: &Attributes, ephemeral: bool, tags: &[String]) -> Self {
        let body = serde_json::json!({
            "capabilities": { "devices": { "create": {
                "reusable": false,
                "ephemeral": attributes.ephemeral.unwrap_or(ephemeral),
                "preauthorized": attributes.preauthorized,
                "tags": tags,
            } } },
            "expirySeconds": KEY_LIFETIME,
        });
        // The tailnet "-" is the token's own.
        Self { url: format!("{base_url}/api/v2/tailnet/-/keys"), body: body.to_string() }
    }
}

impl OauthSecret {
    /// Where its API is: Tailscale's, whatever the login server.
    #[must_use]
    pub fn base_url(&self) -> &str {
        self.attributes.base_url.as_deref().unwrap_or(API)
    }
}

impl WorkloadIdentity {
    /// Where its API is: at the login server itself.
    #[must_use]
    pub fn base_url(login_server: &str) -> &str {
        login_server.trim_end_matches('/')
    }
}

impl GitHubJob {
    /// What is fetched for an id token, with the job's bearer token: GitHub's URL has a query of its own.
    #[must_use]
    pub fn id_token_url(&self) -> String {
        let url = self.url.as_str();
        let separator = match url.split_once('?') {
            None => "?",
            Some((_, query)) if query.is_empty() || query.ends_with('&') => "",
            Some(_) => "&",
        };
        format!("{url}{separator}{}", form::write(&[("audience", &self.audience)]))
    }
}
