//! The control server: its URL and its key.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nixtail_proto::control::{AnswerError, judge_status, read_server_key};
use nixtail_proto::key::MachinePublic;
use nixtail_proto::proxy::Proxies;
use nixtail_proto::tailcfg::CAPABILITY_VERSION;
use rand::rngs::StdRng;
use reqwest::Url;

use super::ControlError;
use crate::net::http::{HttpClient, HttpError, Limits, Redirects};

/// How long one step on the way to control may take: a connection, TLS, an upgrade, a handshake.
const STEP_PATIENCE: Duration = Duration::from_secs(10);
/// How long control may take to tell its key: all of those steps, and an answer.
const KEY_PATIENCE: Duration = Duration::from_secs(15);
/// Bytes of that answer at most, as in Go.
const MAX_KEY_ANSWER: usize = 64 << 10;
/// Redirects followed on the way to it.
const MAX_REDIRECTS: usize = 3;

/// Where control is, as the user named it.
#[derive(Debug, Clone)]
pub(super) struct Server {
    pub(super) host: String,
    pub(super) is_https: bool,
    /// The port, if one was named that isn't the scheme's own.
    pub(super) explicit_port: Option<u16>,
    /// The ports of https and of http where none was named. Others in tests.
    pub(super) standard_ports: (u16, u16),
    /// How long one step on the way there may take. Less in tests.
    pub(super) patience: Duration,
    pub(super) key_patience: Duration,
    url: Url,
    /// What is being done, for when it never ends. Shared by all that talk to this server.
    step: Arc<Mutex<&'static str>>,
}

impl Server {
    pub(super) fn parse(text: &str) -> Result<Self, ControlError> {
        let error = |why| ControlError::Url { url: nixtail_proto::control::printable(text.as_bytes()), why };
        let url = Url::parse(text).map_err(|_| error("it can't be read as a URL"))?;
        let is_https = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return Err(error("its scheme is neither http nor https")),
        };
        let host = url.host_str().ok_or_else(|| error("it names no host"))?.to_owned();
        if !url.username().is_empty() || url.password().is_some() {
            return Err(error("it has a user name or password in it"));
        }
        Ok(Self {
            host,
            is_https,
            explicit_port: url.port(),
            standard_ports: (443, 80),
            patience: STEP_PATIENCE,
            key_patience: KEY_PATIENCE,
            url,
            step: Arc::new(Mutex::new("connecting")),
        })
    }

    /// `host[:port]`, as in a `Host` header.
    pub(super) fn authority(&self) -> String {
        match self.explicit_port {
            Some(port) => format!("{}:{port}", self.host),
            None => self.host.clone(),
        }
    }

    /// The host for a resolver or a certificate: without the brackets of an IPv6 address.
    pub(super) fn bare_host(&self) -> &str {
        self.host.trim_matches(['[', ']'])
    }

    /// Gives a step this long and no longer, and remembers its name.
    pub(super) async fn within<T>(
        &self,
        step: &'static str,
        after: Duration,
        work: impl Future<Output = Result<T, ControlError>>,
    ) -> Result<T, ControlError> {
        *self.step.lock().unwrap_or_else(PoisonError::into_inner) = step;
        let timeout = |_| Err(ControlError::Timeout { server: self.authority(), what: step, after });
        tokio::time::timeout(after, work).await.unwrap_or_else(timeout)
    }

    /// The step that was begun last.
    pub(super) fn step(&self) -> &'static str {
        *self.step.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// That the network failed in a step.
    pub(super) fn network(&self, what: &'static str, source: std::io::Error) -> ControlError {
        ControlError::Network { server: self.authority(), what, source }
    }

    /// Whether a URL leads to control as the user named it, by the same scheme and port.
    pub(super) fn is_origin_of(&self, url: &Url) -> bool {
        self.url.origin() == url.origin()
    }

    /// Sends a request to one of control's own URLs by plain HTTP(S). What it answers doesn't matter.
    pub(super) async fn send_outside(
        &self,
        proxies: &Proxies,
        method: http::Method,
        url: Url,
        body: Vec<u8>,
    ) -> Result<(), ControlError> {
        let sent = async {
            let client = HttpClient::new(&self.url, Redirects::Refused, proxies)?;
            let limits = Limits { deadline: self.patience, body: 0 };
            client.send(client.request(method, url).body(body), limits).await
        };
        match sent.await {
            Ok(_) | Err(HttpError::TooLong(_)) => Ok(()),
            Err(error) => Err(self.http_error("answering its ping", error)),
        }
    }

    /// Asks control for its key, over TLS that is verified, or over plain HTTP if that is what the user named.
    pub(super) async fn fetch_key(&self, proxies: &Proxies) -> Result<MachinePublic, ControlError> {
        self.ask_key(proxies).await.map(|(key, _)| key)
    }

    /// As [`Self::fetch_key`], with the header `Date` of its answer.
    pub(super) async fn ask_key(&self, proxies: &Proxies) -> Result<(MachinePublic, Option<String>), ControlError> {
        let server = self.authority();
        let mut url = self.url.clone();
        url.set_path("/key");
        url.set_query(Some(&format!("v={CAPABILITY_VERSION}")));
        let answer = async {
            let client = HttpClient::new(&self.url, Redirects::Followed(MAX_REDIRECTS), proxies)?;
            client.send(client.get(url), Limits { deadline: self.key_patience, body: MAX_KEY_ANSWER }).await
        };
        let answer = async { answer.await.map_err(|error| self.http_error("asking for its key", error)) };
        let answer = self.within("asking for its key", self.key_patience, answer).await?;
        if !answer.is_success() {
            return Err(refused_step(&server, "/key", answer.status, answer.retry_after.as_deref(), &answer.body));
        }
        let key = read_server_key(&answer.body);
        let key = key.ok_or_else(|| ControlError::protocol(&server, "/key tells no machine key"))?;
        Ok((key, answer.date))
    }

    fn http_error(&self, what: &'static str, error: HttpError) -> ControlError {
        let server = self.authority();
        match error {
            HttpError::Timeout(after) => ControlError::Timeout { server, what, after },
            HttpError::TooLong(_) => ControlError::protocol(&server, format!("its answer is too long ({what})")),
            HttpError::NoAuthorities(source) => ControlError::NoAuthorities { server, source },
            HttpError::Proxy(error) => ControlError::Proxy { server, failure: error.into() },
            HttpError::Network(text) => ControlError::Network { server, what, source: std::io::Error::other(text) },
        }
    }
}

/// What an HTTP status means before control knows who asks: that it is busy or broken, or that something else is there.
pub(super) fn refused_step(
    server: &str,
    step: &str,
    status: u16,
    retry_after: Option<&str>,
    body: &[u8],
) -> ControlError {
    match judge_status(status, retry_after, body, super::clock(), &mut rand::make_rng::<StdRng>()) {
        Err(error @ (AnswerError::Later(_) | AnswerError::Failed { .. })) if status >= 400 => error.into(),
        _ => ControlError::protocol(server, format!("{step} answered HTTP {status}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_login_servers() {
        let of = |text| Server::parse(text).map(|s| (s.authority(), s.is_https, s.explicit_port));
        assert_eq!(of("https://control.example").unwrap(), ("control.example".to_owned(), true, None));
        assert_eq!(of("https://control.example:443/").unwrap(), ("control.example".to_owned(), true, None));
        assert_eq!(of("http://127.0.0.1:8080").unwrap(), ("127.0.0.1:8080".to_owned(), false, Some(8080)));
        assert_eq!(Server::parse("http://[::1]:1").unwrap().bare_host(), "::1");
        for text in ["", "control.example", "ftp://x", "https://", "https://user:pw@x"] {
            assert!(matches!(of(text), Err(ControlError::Url { .. })), "{text}");
        }
    }
}
