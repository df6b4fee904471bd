//! Asking Tailscale's API for an auth key, and GitHub for proof of who this job is.

use std::time::{Duration, SystemTime};

use nixtail_proto::control::printable;
use nixtail_proto::credential::{
    self, ApiAnswer, ApiStep, Claims, CredentialError, GitHubJob, KeyCall, OauthSecret, Proof, TokenCall,
    WorkloadIdentity,
};
use nixtail_proto::proxy::Proxies;
use nixtail_proto::secret::Secret;
use reqwest::Url;
use reqwest::header::{ACCEPT, CONTENT_TYPE};

use super::{AuthError, Request, find};
use crate::net::http::{HttpAnswer, HttpClient, HttpError, Limits, Redirects};

/// How long an answer may take (as in Go) and be. Who wants the key tries again until a deadline of its own.
const LIMITS: Limits = Limits { deadline: Duration::from_secs(10), body: 1 << 20 };
const FORM: &str = "application/x-www-form-urlencoded";
const JSON: &str = "application/json";

/// A key for an OAuth secret.
pub(super) async fn of_client(client: &OauthSecret, request: &Request<'_>) -> Result<Secret, AuthError> {
    let step = ApiStep::AccessToken;
    let call = TokenCall::of_client(client);
    let api = Endpoint::new(step, &call.url, request.proxies, "set baseURL to http(s)://HOST[:PORT], or leave it out")?;
    let answer = api.post_form(step, &call).await?;
    let token = credential::read_access_token(&judged(&answer))?;
    let call = KeyCall::new(client.base_url(), &client.attributes, request.ephemeral, request.tags);
    api.make_key(&call, &token, request.tags).await
}

/// A key for a workload identity.
pub(super) async fn of_identity(identity: &WorkloadIdentity, request: &Request<'_>) -> Result<Secret, AuthError> {
    let id_token = prove(&identity.proof, request.proxies).await?;
    let step = ApiStep::Exchange;
    let call = TokenCall::of_identity(identity, request.login_server, &id_token);
    let api = Endpoint::new(step, &call.url, request.proxies, "set --login-server to http(s)://HOST[:PORT]")?;
    let answer = api.post_form(step, &call).await?;
    let token = credential::read_exchange(&judged(&answer), Claims::of(&id_token, SystemTime::now()))?;
    let base_url = WorkloadIdentity::base_url(request.login_server);
    let call = KeyCall::new(base_url, &identity.attributes, request.ephemeral, request.tags);
    api.make_key(&call, &token, request.tags).await
}

/// The token that says who runs this. It lives for minutes, so it is fetched when it is wanted.
async fn prove(proof: &Proof, proxies: &Proxies) -> Result<Secret, AuthError> {
    match proof {
        Proof::IdToken(token) => Ok(token.clone()),
        Proof::IdTokenFile(path) => {
            const FROM: &str = "TS_ID_TOKEN";
            let path = path.clone();
            let read = tokio::task::spawn_blocking(move || find::read_file(FROM, &path));
            // It can only end badly with the runtime itself.
            let text = read.await.map_err(|_| CredentialError::Unread { from: FROM.to_owned() })??;
            Ok(credential::id_token(FROM, text.expose())?)
        }
        Proof::GitHub(job) => ask_github(job, proxies).await,
    }
}

async fn ask_github(job: &GitHubJob, proxies: &Proxies) -> Result<Secret, AuthError> {
    let step = ApiStep::IdToken;
    let next = "GitHub sets ACTIONS_ID_TOKEN_REQUEST_URL; leave it as it is";
    let github = Endpoint::new(step, &job.id_token_url(), proxies, next)?;
    let get = github.client.get(github.url.clone()).bearer_auth(job.bearer.expose()).header(ACCEPT, JSON);
    let answer = github.client.send(get, LIMITS).await.map_err(|error| github.failed(step, &error))?;
    Ok(credential::read_id_token(&judged(&answer))?)
}

/// Who is asked.
struct Endpoint {
    client: HttpClient,
    url: Url,
}

impl Endpoint {
    /// `next` says what to do where the URL is none.
    fn new(step: ApiStep, url: &str, proxies: &Proxies, next: &'static str) -> Result<Self, AuthError> {
        let wrong = || AuthError::Url { step, url: printable(url.as_bytes()), next };
        let url = Url::parse(url).ok().filter(|url| url.has_host()).ok_or_else(wrong)?;
        // A secret goes there: the client follows no redirect.
        let client = HttpClient::new(&url, Redirects::Refused, proxies)
            .map_err(|error| AuthError::of_http(step, url.authority(), &error))?;
        Ok(Self { client, url })
    }

    async fn post_form(&self, step: ApiStep, call: &TokenCall) -> Result<HttpAnswer, AuthError> {
        let post = self.client.post(self.url.clone());
        let post = post.header(CONTENT_TYPE, FORM).header(ACCEPT, JSON).body(call.body.expose().to_owned());
        self.client.send(post, LIMITS).await.map_err(|error| self.failed(step, &error))
    }

    async fn make_key(&self, call: &KeyCall, token: &Secret, tags: &[String]) -> Result<Secret, AuthError> {
        let step = ApiStep::AuthKey;
        let mut url = self.url.clone();
        url.set_path(Url::parse(&call.url).as_ref().map_or("", Url::path));
        let post = self.client.post(url).bearer_auth(token.expose());
        let post = post.header(CONTENT_TYPE, JSON).header(ACCEPT, JSON).body(call.body.clone());
        let answer = self.client.send(post, LIMITS).await.map_err(|error| self.failed(step, &error))?;
        Ok(credential::read_auth_key(&judged(&answer), tags)?)
    }

    fn failed(&self, step: ApiStep, error: &HttpError) -> AuthError {
        AuthError::of_http(step, self.url.authority(), error)
    }
}

fn judged(answer: &HttpAnswer) -> ApiAnswer<'_> {
    ApiAnswer { status: answer.status, retry_after: answer.retry_after.as_deref(), body: &answer.body }
}
