//! The control server: its URL and its key.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use nixtail_proto::key::MachinePublic;
use nixtail_proto::tailcfg::CAPABILITY_VERSION;
use reqwest::Url;
use reqwest::redirect::Policy;
use serde::Deserialize;

use super::ControlError;
use crate::net::tls::{self, Trust};

/// How long control may take to tell its key.
const KEY_TIMEOUT: Duration = Duration::from_secs(15);
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
    url: Url,
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
        Ok(Self { host, is_https, explicit_port: url.port(), url })
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

    /// Asks control for its key, over TLS that is verified, or over plain HTTP if that is what the user named.
    pub(super) async fn fetch_key(&self) -> Result<MachinePublic, ControlError> {
        tls::install_provider();
        let server = self.authority();
        let mut client = reqwest::Client::builder()
            .timeout(KEY_TIMEOUT)
            .https_only(self.is_https)
            .redirect(Policy::limited(MAX_REDIRECTS));
        client = match tls::client_config(Trust::System) {
            Ok(config) => client.tls_backend_preconfigured(Arc::unwrap_or_clone(config)),
            // A machine without authorities, such as a bare container, can log in where no TLS is spoken.
            Err(_) if !self.is_https => client.tls_certs_only([]),
            Err(source) => return Err(ControlError::NoAuthorities { server, source }),
        };
        // A proxy of the outside world doesn't know our loopback.
        if self.bare_host() == "localhost" || self.bare_host().parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()) {
            client = client.no_proxy();
        }
        let network = |error: reqwest::Error| {
            let what = "asking for its key";
            if error.is_timeout() {
                return ControlError::Timeout { server: self.authority(), what, after: KEY_TIMEOUT };
            }
            let source = std::io::Error::other(causes(&error.without_url()));
            ControlError::Network { server: self.authority(), what, source }
        };
        let mut url = self.url.clone();
        url.set_path("/key");
        url.set_query(Some(&format!("v={CAPABILITY_VERSION}")));
        let mut response = client.build().map_err(network)?.get(url).send().await.map_err(network)?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(network)? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_KEY_ANSWER {
                return Err(ControlError::protocol(&server, "its answer to /key is too long"));
            }
        }
        if !status.is_success() {
            return Err(ControlError::protocol(&server, format!("/key answered HTTP {status}")));
        }
        serde_json::from_slice::<KeyAnswer>(&body)
            .map(|answer| answer.public_key)
            .ok()
            .filter(|key| !key.is_zero())
            .ok_or_else(|| ControlError::protocol(&server, "/key tells no machine key"))
    }
}

#[derive(Deserialize)]
struct KeyAnswer {
    /// Not `legacyPublicKey`, which is of a protocol long gone.
    #[serde(rename = "publicKey")]
    public_key: MachinePublic,
}

/// An error with what caused it, on one line.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
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
