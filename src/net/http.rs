//! HTTP to what isn't spoken to inside ts2021: control's key, the admin API, a CI's token endpoint. The one place that makes
//! a client, so that whom it trusts, which proxy it takes, where it may be sent on to and how much it reads is decided once.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use nixtail_proto::control::printable;
use nixtail_proto::proxy::{Proxies, Proxy, ProxyError, Scheme};
use reqwest::header::HeaderValue;
use reqwest::redirect::{Attempt, Policy};
use reqwest::{RequestBuilder, Response, Url};

use super::tls::{self, Trust};

/// A client for one server and for nothing else.
///
/// Plain HTTP is spoken only where the URL that it was made for is a plain one, and then only with that host and port.
pub(crate) struct HttpClient(reqwest::Client);

/// Whether an answer may send a request on to somewhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Redirects {
    /// No. For whatever carries a secret.
    Refused,
    /// So many times, and never from TLS to plain HTTP.
    Followed(usize),
}

/// How long a request may take and how long its answer may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// For everything, from looking up the name to the answer's last byte.
    pub(crate) deadline: Duration,
    /// Bytes of the body. A longer success is an error; of another answer this much is kept.
    pub(crate) body: usize,
}

/// An answer, whatever its status.
#[derive(Debug)]
pub(crate) struct HttpAnswer {
    /// The status code.
    pub(crate) status: u16,
    /// The header `Retry-After`.
    pub(crate) retry_after: Option<String>,
    /// The header `Date`.
    pub(crate) date: Option<String>,
    /// The body, as far as [`Limits::body`] goes.
    pub(crate) body: Vec<u8>,
}

impl HttpAnswer {
    /// Whether it is a 2xx.
    pub(crate) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// Why there is no answer. Has no URL in it, and no secret.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    /// The network, TLS, or what answers isn't HTTP.
    #[error("{0}")]
    Network(String),
    /// The deadline.
    #[error("no whole answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// A success that is longer than it may be.
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
    /// This system knows no certificate authority.
    #[error("no certificate authority is known: {0}")]
    NoAuthorities(rustls::Error),
    /// The environment's proxy can't be used.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
}

impl HttpClient {
    /// A client for `base` and what is below it.
    ///
    /// # Errors
    /// [`HttpError::NoAuthorities`] if `base` is an https URL, and [`HttpError::Proxy`].
    pub(crate) fn new(base: &Url, redirects: Redirects, proxies: &Proxies) -> Result<Self, HttpError> {
        tls::install_provider();
        let is_plain = base.scheme() == "http";
        // The variables are read by us: reqwest would heed others, and in another way.
        let mut client = reqwest::Client::builder()
            .no_proxy()
            .https_only(!is_plain)
            .redirect(policy(base.clone(), redirects))
            .user_agent(concat!("nixtail/", env!("CARGO_PKG_VERSION")));
        if let Some(proxy) = find_proxy(proxies, base)? {
            client = client.proxy(intercept(base, proxy)?);
        }
        client = if is_plain {
            // No TLS is spoken then: a machine without authorities, such as a bare container, can log in, and no start waits
            // for a hundred certificates to be parsed.
            client.tls_certs_only([])
        } else {
            let config = tls::client_config(Trust::System).map_err(HttpError::NoAuthorities)?;
            client.tls_backend_preconfigured(Arc::unwrap_or_clone(config))
        };
        client.build().map(Self).map_err(network)
    }

    /// A request, to be completed and given to [`Self::send`].
    pub(crate) fn request(&self, method: reqwest::Method, url: Url) -> RequestBuilder {
        self.0.request(method, url)
    }

    /// A GET request, to be completed and given to [`Self::send`].
    pub(crate) fn get(&self, url: Url) -> RequestBuilder {
        self.0.get(url)
    }

    /// A POST request, to be completed and given to [`Self::send`].
    pub(crate) fn post(&self, url: Url) -> RequestBuilder {
        self.0.post(url)
    }

    /// Sends a request of this client and reads the answer.
    ///
    /// # Errors
    /// When there is no whole answer. One that says no is an answer.
    pub(crate) async fn send(&self, request: RequestBuilder, limits: Limits) -> Result<HttpAnswer, HttpError> {
        let asked = async { read(request.send().await.map_err(network)?, limits.body).await };
        tokio::time::timeout(limits.deadline, asked).await.unwrap_or(Err(HttpError::Timeout(limits.deadline)))
    }
}

async fn read(mut response: Response, most: usize) -> Result<HttpAnswer, HttpError> {
    let header = |name| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
    let mut answer = HttpAnswer {
        status: response.status().as_u16(),
        retry_after: header("retry-after"),
        date: header("date"),
        body: Vec::new(),
    };
    while let Some(chunk) = response.chunk().await.map_err(network)? {
        answer.body.extend_from_slice(&chunk);
        if answer.body.len() > most {
            if answer.is_success() {
                return Err(HttpError::TooLong(most));
            }
            answer.body.truncate(most);
            break;
        }
    }
    Ok(answer)
}

/// Follows where it may: from TLS over TLS anywhere, without it only to where the user pointed.
fn policy(base: Url, redirects: Redirects) -> Policy {
    let Redirects::Followed(most) = redirects else { return Policy::none() };
    Policy::custom(move |attempt: Attempt<'_>| {
        let url = attempt.url();
        let is_same = url.origin() == base.origin();
        if !is_same && base.scheme() == "http" && url.scheme() == "https" {
            attempt.error("it redirects to https: give its address with https://")
        } else if !is_same && url.scheme() != "https" {
            attempt.error("it redirects to plain HTTP elsewhere")
        } else if attempt.previous().len() > most {
            attempt.error("it redirects too often")
        } else {
            attempt.follow()
        }
    })
}

/// Which proxy leads to a URL's host.
pub(crate) fn find_proxy<'a>(proxies: &'a Proxies, url: &Url) -> Result<Option<&'a Proxy>, ProxyError> {
    let scheme = if url.scheme() == "http" { Scheme::Http } else { Scheme::Https };
    proxies.find(scheme, url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or_default())
}

/// All goes through the proxy that leads to the server: where that redirects, too.
fn intercept(base: &Url, proxy: &Proxy) -> Result<reqwest::Proxy, HttpError> {
    debug_assert!(base.has_host());
    let mut intercept = reqwest::Proxy::all(proxy.url()).map_err(network)?;
    if let Some(value) = proxy.authorization()
        && let Ok(mut value) = HeaderValue::from_str(value.expose())
    {
        value.set_sensitive(true);
        intercept = intercept.custom_http_auth(value);
    }
    Ok(intercept)
}

/// An error of reqwest with what caused it, on one line and without its URL.
fn network(error: reqwest::Error) -> HttpError {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    HttpError::Network(printable(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const LIMITS: Limits = Limits { deadline: Duration::from_secs(20), body: 100 };

    /// A server that gives each connection the next of these answers; gives its URL, and what it was asked.
    async fn serve(answers: Vec<Vec<u8>>) -> (Url, tokio::task::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
        let served = tokio::spawn(async move {
            let mut asked = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    assert!(stream.read_buf(&mut head).await.unwrap() > 0);
                }
                asked.push(String::from_utf8(head).unwrap());
                // One that has read enough hangs up.
                let _ = stream.write_all(&answer).await;
            }
            asked
        });
        (url, served)
    }

    async fn get(url: &Url, redirects: Redirects, proxies: &Proxies) -> Result<HttpAnswer, HttpError> {
        let client = HttpClient::new(url, redirects, proxies)?;
        client.send(client.get(url.clone()), LIMITS).await
    }

    #[tokio::test]
    async fn a_longer_success_is_an_error_and_a_longer_refusal_is_cut() {
        let long = |status: &str| {
            let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nRetry-After: 7\r\n\r\n");
            [head.into_bytes(), vec![b'x'; 100_000]].concat()
        };
        let (url, _) = serve(vec![long("200 OK"), long("429 x")]).await;
        let none = Proxies::default();
        let get = || get(&url, Redirects::Refused, &none);
        assert!(matches!(get().await, Err(HttpError::TooLong(100))));
        let answer = get().await.unwrap();
        assert_eq!((answer.status, answer.body.len(), answer.retry_after.as_deref()), (429, 100, Some("7")));
        assert!(!answer.is_success());
    }

    #[tokio::test]
    async fn redirects_to_plain_http_elsewhere_are_refused() {
        let to = |place: &str| {
            format!("HTTP/1.1 302 x\r\nConnection: close\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n")
                .into_bytes()
        };
        let good = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok".to_vec();
        let (url, asked) = serve(vec![to("/there"), good]).await;
        let answer = get(&url, Redirects::Followed(1), &Proxies::default()).await.unwrap();
        assert_eq!(answer.body, b"ok");
        assert!(asked.await.unwrap()[1].starts_with("GET /there "));

        let (url, _) =
            serve(vec![to("http://127.0.0.1:1/"), to("https://127.0.0.1:1/"), to("/there"), to("/on")]).await;
        let elsewhere = get(&url, Redirects::Followed(1), &Proxies::default()).await.unwrap_err();
        assert!(elsewhere.to_string().contains("redirects to plain HTTP"), "{elsewhere}");
        let to_tls = get(&url, Redirects::Followed(1), &Proxies::default()).await.unwrap_err();
        assert!(to_tls.to_string().contains("give its address with https://"), "{to_tls}");
        let too_often = get(&url, Redirects::Followed(1), &Proxies::default()).await.unwrap_err();
        assert!(too_often.to_string().contains("too often"), "{too_often}");

        let (url, _) = serve(vec![to("/there")]).await;
        assert_eq!(get(&url, Redirects::Refused, &Proxies::default()).await.unwrap().status, 302);
    }

    #[tokio::test]
    async fn plain_http_goes_through_its_proxy_with_the_users_name() {
        let good = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok".to_vec();
        let (proxy, asked) = serve(vec![good]).await;
        let value = format!("http://me:secret@{}:{}", proxy.host_str().unwrap(), proxy.port().unwrap());
        let proxies = Proxies::read(|name| (name == "http_proxy").then(|| value.clone()));
        // No such name exists: only a proxy can answer for it.
        let url = "http://control.invalid/key".parse().unwrap();
        assert_eq!(get(&url, Redirects::Refused, &proxies).await.unwrap().body, b"ok");
        let asked = asked.await.unwrap().remove(0);
        assert!(asked.starts_with("GET http://control.invalid/key "), "{asked}");
        assert!(asked.to_ascii_lowercase().contains("proxy-authorization: basic"), "{asked}");
    }

    #[tokio::test]
    async fn what_is_wrong_is_said_without_the_url() {
        let url = "http://127.0.0.1:1/path?secret=hush".parse().unwrap();
        let error = get(&url, Redirects::Refused, &Proxies::default()).await.unwrap_err();
        assert!(matches!(error, HttpError::Network(_)) && !format!("{error}{error:?}").contains("hush"), "{error:?}");

        let (listener, deadline) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), Duration::from_millis(100));
        let url: Url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let client = HttpClient::new(&url, Redirects::Refused, &Proxies::default()).unwrap();
        let silent = client.send(client.get(url), Limits { deadline, body: 1 }).await;
        assert!(matches!(silent, Err(HttpError::Timeout(_))));

        let proxies = Proxies::read(|name| (name == "HTTP_PROXY").then(|| "socks5://x".to_owned()));
        let url = "http://control.invalid".parse().unwrap();
        assert!(matches!(get(&url, Redirects::Refused, &proxies).await, Err(HttpError::Proxy(_))));
    }
}
