//! The identity provider: tokens that say who runs a job, and the endpoint where jobs on GitHub get theirs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::{Refusal, State, bearer, form, insert, random_text};
use crate::http1::Request;

/// How long an id token is good for: minutes, as with GitHub.
const LIFETIME: Duration = Duration::from_secs(300);
/// Who says so.
pub(super) const ISSUER: &str = "https://token.devnet";
/// For whom GitHub's tokens are unless the job says so.
const DEFAULT_AUDIENCE: &str = "https://github.devnet/owner";

/// Whom the provider vouches for.
#[derive(Debug, Default)]
pub(super) struct Issuer {
    /// The tokens that it made. What stands for a signature is random, so nobody else can make one.
    tokens: BTreeMap<String, Claims>,
    /// The jobs that may ask for tokens: bearer to subject.
    jobs: BTreeMap<String, String>,
}

/// What a token says.
#[derive(Debug, Clone)]
pub(super) struct Claims {
    pub(super) issuer: String,
    pub(super) subject: String,
    pub(super) audience: String,
    ends: Instant,
}

impl Issuer {
    pub(super) fn issue(&mut self, now: Instant, subject: &str, audience: &str) -> Result<String, Refusal> {
        let ends = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + LIFETIME;
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let header = part(&json!({ "alg": "devnet", "typ": "JWT" }));
        let payload = part(&json!({ "iss": ISSUER, "sub": subject, "aud": audience, "exp": ends.as_secs() }));
        let token = format!("{header}.{payload}.{}", random_text(32)?);
        let claims = Claims {
            issuer: ISSUER.to_owned(),
            subject: subject.to_owned(),
            audience: audience.to_owned(),
            ends: now + LIFETIME,
        };
        self.tokens.retain(|_, claims| claims.ends > now);
        insert(&mut self.tokens, token.clone(), claims)?;
        Ok(token)
    }

    /// What a token says, if it is one of ours and hasn't ended.
    pub(super) fn verify(&self, now: Instant, token: &str) -> Option<&Claims> {
        self.tokens.get(token).filter(|claims| claims.ends > now)
    }

    /// Starts a job; the result is what it authenticates with.
    pub(super) fn start_job(&mut self, subject: &str) -> Result<String, Refusal> {
        let bearer = format!("job-{}", random_text(16)?);
        insert(&mut self.jobs, bearer.clone(), subject.to_owned())?;
        Ok(bearer)
    }
}

impl State {
    /// `GET …?api-version=2.0&audience=…`, as GitHub's runners serve it.
    pub(super) fn github_token(&mut self, now: Instant, request: &Request) -> Result<Value, Refusal> {
        let query = form::read(request.target.split_once('?').map_or("", |(_, query)| query));
        if query.get("api-version").is_none_or(|version| version != "2.0") {
            return Err((400, "the query that the URL came with is missing".to_owned()));
        }
        let subject = bearer(request).and_then(|bearer| self.issuer.jobs.get(bearer)).cloned();
        let Some(subject) = subject else { return Err((401, "Bad credentials".to_owned())) };
        let audience = query.get("audience").map_or(DEFAULT_AUDIENCE, String::as_str);
        let token = self.issuer.issue(now, &subject, audience)?;
        Ok(json!({ "count": token.len(), "value": token }))
    }
}
