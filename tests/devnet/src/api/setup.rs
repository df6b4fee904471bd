//! What an admin sets up: OAuth clients, federated identities, who owns which tag.

use std::collections::BTreeMap;
use std::time::Instant;

use nixtail_proto::secret::Secret;

use super::issuer::ISSUER;
use super::{Client, ClientProof, GITHUB_PATH, Refusal, insert, random_text};
use crate::{Devnet, DevnetError};

/// An OAuth client to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OauthClient {
    /// What it may do; `auth_keys` is what a login takes.
    pub scopes: Vec<String>,
    /// The tags that its keys have, `tag:` included.
    pub tags: Vec<String>,
}

/// A federated identity to be made: who brings a token that says so is let act as this client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FederatedIdentity {
    /// The subject that tokens must have; a `*` stands for anything.
    pub subject: String,
    /// The audience that tokens must have.
    pub audience: String,
    /// What it may do; `auth_keys` is what a login takes.
    pub scopes: Vec<String>,
    /// The tags that its keys have, `tag:` included.
    pub tags: Vec<String>,
}

/// What GitHub gives a job that may ask for id tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitHubJob {
    /// `ACTIONS_ID_TOKEN_REQUEST_URL`.
    pub url: String,
    /// `ACTIONS_ID_TOKEN_REQUEST_TOKEN`.
    pub bearer: Secret,
}

impl Devnet {
    /// Makes an OAuth client; gives its secret. For clients, the API is at [`Self::url`].
    ///
    /// # Errors
    /// When there are too many, or the system gives no randomness.
    pub fn add_oauth_client(&self, client: OauthClient) -> Result<Secret, DevnetError> {
        let id = random_text(6).map_err(failed)?;
        let secret = Secret::new(format!("tskey-client-{id}-{}", random_text(16).map_err(failed)?));
        let OauthClient { scopes, tags } = client;
        let client = Client { proof: ClientProof::Secret(secret.clone()), scopes, tags };
        insert(&mut self.api().lock().clients, id, client).map_err(failed)?;
        Ok(secret)
    }

    /// Makes a federated identity; gives its client id.
    ///
    /// # Errors
    /// When there are too many, or the system gives no randomness.
    pub fn add_federated_identity(&self, identity: FederatedIdentity) -> Result<String, DevnetError> {
        let id = format!("T{}/k{}", random_text(4).map_err(failed)?, random_text(6).map_err(failed)?);
        let FederatedIdentity { subject, audience, scopes, tags } = identity;
        let proof = ClientProof::Identity { issuer: ISSUER.to_owned(), subject, audience };
        insert(&mut self.api().lock().clients, id.clone(), Client { proof, scopes, tags }).map_err(failed)?;
        Ok(id)
    }

    /// Forgets all OAuth clients and federated identities.
    pub fn revoke_clients(&self) {
        self.api().lock().clients.clear();
    }

    /// An id token, as an identity provider makes it.
    ///
    /// # Errors
    /// When there are too many, or the system gives no randomness.
    pub fn id_token(&self, subject: &str, audience: &str) -> Result<Secret, DevnetError> {
        let token = self.api().lock().issuer.issue(Instant::now(), subject, audience).map_err(failed)?;
        Ok(Secret::new(token))
    }

    /// Starts a job on GitHub, so to speak: it may ask for id tokens with this subject.
    ///
    /// # Errors
    /// When there are too many, or the system gives no randomness.
    pub fn github_job(&self, subject: &str) -> Result<GitHubJob, DevnetError> {
        let bearer = self.api().lock().issuer.start_job(subject).map_err(failed)?;
        let url = format!("{}{GITHUB_PATH}?api-version=2.0", self.url());
        Ok(GitHubJob { url, bearer: Secret::new(bearer) })
    }

    /// Sets who owns which tag, as `tagOwners` of a policy file: a tag that isn't in it doesn't exist.
    pub fn set_tag_owners(&self, owners: BTreeMap<String, Vec<String>>) {
        self.api().lock().tag_owners = Some(owners);
    }
}

fn failed((_, message): Refusal) -> DevnetError {
    DevnetError::Random(message)
}
