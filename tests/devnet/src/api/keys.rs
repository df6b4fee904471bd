//! Auth keys, for whom the scope and the tags allow it.

use std::time::{Duration, Instant};

use rand::Rng as _;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Client, Refusal, State};
use crate::auth_key::AuthKeyOptions;
use crate::http1::Request;
use crate::tailnet::Tailnet;

/// The scopes that allow it.
const SCOPES: [&str; 2] = ["auth_keys", "all"];
/// How long a key is good for unless the request says so.
const LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    capabilities: Value,
    #[serde(default)]
    expiry_seconds: u64,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Create {
    reusable: bool,
    ephemeral: bool,
    preauthorized: bool,
    tags: Vec<String>,
}

impl State {
    pub(super) fn make_key(
        &self,
        now: Instant,
        request: &Request,
        body: &[u8],
        tailnet: &Tailnet,
    ) -> Result<Value, Refusal> {
        let client = self.authenticate(now, request)?;
        if !client.scopes.iter().any(|scope| SCOPES.contains(&scope.as_str())) {
            let message = "calling actor does not have enough permissions to perform this function";
            return Err((403, message.to_owned()));
        }
        let wrong = |_| (400, "the body makes no sense".to_owned());
        let Body { capabilities, expiry_seconds } = serde_json::from_slice(body).map_err(wrong)?;
        let create = capabilities.pointer("/devices/create").cloned().unwrap_or_default();
        let Create { reusable, ephemeral, preauthorized, tags } = serde_json::from_value(create).map_err(wrong)?;
        if !self.may_give(client, &tags) {
            let message = format!("requested tags [{}] are invalid or not permitted", tags.join(" "));
            return Err((400, message));
        }
        let lifetime = if expiry_seconds == 0 { LIFETIME } else { Duration::from_secs(expiry_seconds) };
        let mut random = [0; 16];
        crate::random::rng().map_err(|error| (500, error))?.fill_bytes(&mut random);
        let options = AuthKeyOptions { reusable, ephemeral, preauthorized, tags, expires: Some(lifetime) };
        let key = tailnet.add_auth_key(random, options).ok_or_else(|| (500, "no room".into()))?;
        Ok(json!({ "id": "kdevnetCNTRL", "key": key.expose(), "capabilities": capabilities }))
    }

    /// A client gives all of its tags together, or such as one of its tags owns. A tag must exist.
    fn may_give(&self, client: &Client, tags: &[String]) -> bool {
        let owners = |tag: &String| self.tag_owners.as_ref().map(|owners| owners.get(tag));
        let exists = tags.iter().all(|tag| !matches!(owners(tag), Some(None)));
        let is_owned = |tag: &String| {
            owners(tag).flatten().is_some_and(|owners| owners.iter().any(|owner| client.tags.contains(owner)))
        };
        let is_whole_set =
            tags.iter().all(|tag| client.tags.contains(tag)) && client.tags.iter().all(|tag| tags.contains(tag));
        !tags.is_empty() && exists && (is_whole_set || tags.iter().all(is_owned))
    }
}
