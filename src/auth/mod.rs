//! What entitles this node to join a tailnet: where it comes from, and how it becomes an auth key.
//!
//! What a credential means is decided in `proto::credential`; here files are read and the API is asked.

mod api;
mod error;
mod find;

use nixtail_proto::proxy::Proxies;
use nixtail_proto::secret::Secret;

pub use error::AuthError;
pub use find::find;
pub use nixtail_proto::credential::Credential;

/// What an auth key is wanted for.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The login server's URL: workload identities are exchanged there.
    pub login_server: &'a str,
    /// The node's tags, `tag:name`.
    pub tags: &'a [String],
    /// Whether the node shall be ephemeral, where the credential doesn't say.
    pub ephemeral: bool,
    /// The way out of this network.
    pub proxies: &'a Proxies,
}

/// The auth key that a credential is good for. A plain key is one; for the others Tailscale's API makes one, for one node
/// and with all the tags, so ask anew for each registration. Takes some seconds at most.
///
/// # Errors
/// When there is none to be had; see [`AuthError::is_refusal`] and [`AuthError::retry_after`].
pub async fn auth_key(credential: &Credential, request: &Request<'_>) -> Result<Secret, AuthError> {
    credential.check_tags(request.tags)?;
    match credential {
        Credential::AuthKey(key) => Ok(key.clone()),
        Credential::OauthSecret(client) => api::of_client(client, request).await,
        Credential::WorkloadIdentity(identity) => api::of_identity(identity, request).await,
    }
}

#[cfg(test)]
mod tests;
