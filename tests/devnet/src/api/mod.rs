//! As much of Tailscale's API (`/api/v2`) as a login needs: access tokens for OAuth clients and federated identities, and
//! auth keys; and a token endpoint as GitHub gives it to its jobs. The texts of refusals are those of the real one, as far
//! as they are known.
//!
//! References: `tailscale/tailscale` `client/tailscale/keys.go`, `feature/oauthkey`, `feature/identityfederation`, `wif`.

mod form;
mod issuer;
mod keys;
mod setup;
mod tokens;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use nixtail_proto::secret::Secret;
use serde_json::json;

use crate::http1::Request;
use crate::misbehaviour::{Answer, Call};
use crate::tailnet::Tailnet;
use issuer::Issuer;
pub use setup::{FederatedIdentity, GitHubJob, OauthClient};
use tokens::Tokens;

const TOKEN_PATH: &str = "/api/v2/oauth/token";
const EXCHANGE_PATH: &str = "/api/v2/oauth/token-exchange";
const KEYS_PATH: &str = "/api/v2/tailnet/-/keys";
/// Where jobs get their tokens.
const GITHUB_PATH: &str = "/github/id-token";
/// Most clients, tokens and jobs that a devnet holds, of each.
const MAX_ENTRIES: usize = 1000;

/// The API's state.
#[derive(Debug, Default)]
pub(crate) struct Api(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    clients: BTreeMap<String, Client>,
    tokens: Tokens,
    issuer: Issuer,
    /// Who owns which tag. `None`: every tag exists, and no tag owns another.
    tag_owners: Option<BTreeMap<String, Vec<String>>>,
}

/// An OAuth client or a federated identity: both are "trust credentials".
#[derive(Debug, Clone)]
struct Client {
    proof: ClientProof,
    scopes: Vec<String>,
    tags: Vec<String>,
}

#[derive(Debug, Clone)]
enum ClientProof {
    Secret(Secret),
    Identity { issuer: String, subject: String, audience: String },
}

/// A refusal: the status and the message.
type Refusal = (u16, String);

/// What a path of the API, or of GitHub, is asked for.
pub(crate) fn call_of(path: &str) -> Option<Call> {
    match path {
        TOKEN_PATH | EXCHANGE_PATH => Some(Call::AccessToken),
        KEYS_PATH => Some(Call::AuthKey),
        GITHUB_PATH => Some(Call::IdToken),
        _ => None,
    }
}

impl Api {
    /// Answers a request that [`call_of`] knows.
    pub(crate) fn answer(&self, request: &Request, body: &[u8], tailnet: &Tailnet) -> Answer {
        let (now, mut state) = (Instant::now(), self.lock());
        let answer = match (request.method.as_str(), request.path()) {
            ("POST", TOKEN_PATH) => state.access_token(now, request, body),
            ("POST", EXCHANGE_PATH) => state.exchange(now, body),
            ("POST", KEYS_PATH) => state.make_key(now, request, body, tailnet),
            ("GET", GITHUB_PATH) => state.github_token(now, request),
            (_, path) => Err((404, format!("a devnet's API doesn't serve {path}"))),
        };
        match answer {
            Ok(json) => Answer::json(&json),
            Err((status, message)) => Answer { status, ..Answer::json(&json!({ "message": message })) },
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while it was held failed a test already.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a request's `Authorization: Bearer` says.
fn bearer(request: &Request) -> Option<&str> {
    request.header("authorization")?.strip_prefix("Bearer ")
}

/// `length` random bytes as hexadecimal text.
fn random_text(length: usize) -> Result<String, Refusal> {
    use rand::Rng as _;
    let mut bytes = vec![0; length];
    let mut rng = crate::random::rng().map_err(|error| (500, error))?;
    rng.fill_bytes(&mut bytes);
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The value behind `name`, if the map has room for one more.
fn insert<T>(map: &mut BTreeMap<String, T>, name: String, value: T) -> Result<(), Refusal> {
    if map.len() >= MAX_ENTRIES {
        return Err((500, "this devnet's API holds no more".to_owned()));
    }
    map.insert(name, value);
    Ok(())
}

#[cfg(test)]
mod tests;
