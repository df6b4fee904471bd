//! What entitles a node to join a tailnet: an auth key, or what an auth key can be had for from Tailscale's API.
//!
//! Here are the decisions: which of several sources counts and what a text means ([`Credential`]), what is asked
//! of the API ([`TokenCall`], [`KeyCall`]) and what its answers mean ([`ApiError`]). Files, variables and HTTP are the shell's.
//!
//! References: `tailscale/tailscale` `feature/oauthkey`, `feature/identityfederation`, `wif`, `tsnet` (`resolveAuthKey`).

mod answer;
mod attributes;
mod call;
mod claims;
mod error;
mod form;
mod parse;
mod refusal;
mod source;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use answer::{ApiAnswer, ApiError, ApiStep, read_access_token, read_auth_key, read_exchange, read_id_token};
pub use attributes::Attributes;
pub use call::{KeyCall, TokenCall};
pub use claims::Claims;
pub use error::CredentialError;
pub use parse::id_token;
pub use refusal::advice;
pub(crate) use refusal::is_used_up;
pub use source::{is_stdin, variables};

use crate::secret::Secret;

/// What entitles this node to join a tailnet. `Debug` shows nothing secret; as JSON it is whole, for the pipe to a
/// background process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Credential {
    /// A pre-authentication key, as control made it.
    AuthKey(Secret),
    /// The secret of an OAuth client, good for one-shot keys.
    OauthSecret(OauthSecret),
    /// A federated identity: proof of who runs this is good for one-shot keys.
    WorkloadIdentity(WorkloadIdentity),
}

/// The secret of an OAuth client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OauthSecret {
    /// `tskey-client-…`, without attributes.
    pub secret: Secret,
    /// What its keys shall be.
    pub attributes: Attributes,
}

/// A federated identity, as the admin console made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadIdentity {
    /// Its client id, without attributes.
    pub client_id: String,
    /// What its keys shall be.
    pub attributes: Attributes,
    /// What proves who we are.
    pub proof: Proof,
}

/// Where the token comes from that says who runs this (a JWT of the identity provider).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Proof {
    /// It was given.
    IdToken(Secret),
    /// A file holds it, read anew for each login: whoever writes it keeps it fresh.
    IdTokenFile(PathBuf),
    /// GitHub makes one for this job.
    GitHub(GitHubJob),
}

/// What a job on GitHub asks for a token with; it has that only with the permission `id-token: write`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GitHubJob {
    /// For whom the token shall be, as the federated identity expects it.
    pub audience: String,
    /// `ACTIONS_ID_TOKEN_REQUEST_URL`.
    pub url: String,
    /// `ACTIONS_ID_TOKEN_REQUEST_TOKEN`.
    pub bearer: Secret,
}

impl Credential {
    /// Whether its keys shall let in ephemeral nodes, where it says so. `None`: that is up to the node, or to the key.
    #[must_use]
    pub fn ephemeral(&self) -> Option<bool> {
        self.attributes()?.ephemeral
    }

    /// Sees that there are tags where keys are to be made: such a key belongs to tags, never to a person.
    ///
    /// # Errors
    /// When there are none.
    pub fn check_tags(&self, tags: &[String]) -> Result<(), CredentialError> {
        match self {
            Self::AuthKey(_) => Ok(()),
            _ if !tags.is_empty() => Ok(()),
            Self::OauthSecret(_) => Err(CredentialError::NoTags { what: "an OAuth client" }),
            Self::WorkloadIdentity(_) => Err(CredentialError::NoTags { what: "a workload identity" }),
        }
    }

    fn attributes(&self) -> Option<&Attributes> {
        match self {
            Self::AuthKey(_) => None,
            Self::OauthSecret(client) => Some(&client.attributes),
            Self::WorkloadIdentity(identity) => Some(&identity.attributes),
        }
    }
}

#[cfg(test)]
mod tests;
