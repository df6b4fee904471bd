//! Which HTTP proxy leads where, as the environment says it (`golang.org/x/net/http/httpproxy`, which Go's clients use),
//! and what it is asked (`CONNECT`, RFC 9110 §9.3.6).
//!
//! `HTTPS_PROXY` counts for what is reached by TLS, `HTTP_PROXY` for plain HTTP, `ALL_PROXY` where the one that counts isn't
//! set; each also in small letters. `NO_PROXY` lists what is reached directly, and loopback always is. A value that can't
//! be used is an error where it would count, and nowhere else.

mod exception;

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::secret::Secret;
use exception::Exception;

/// Bytes of a host name at most (RFC 1035 §2.3.4).
const MAX_HOST: usize = 253;

/// How a target is spoken to: which of the variables counts for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Plain HTTP.
    Http,
    /// HTTP over TLS, or anything else over TLS.
    Https,
}

/// The proxies that the environment names. The default has none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    http: Option<Result<Proxy, ProxyError>>,
    https: Option<Result<Proxy, ProxyError>>,
    exceptions: Vec<Exception>,
}

impl Proxies {
    /// Reads the environment's variables through `variable`, which gives the value of the one that is named.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Self {
        let find = |names: [&'static str; 2]| {
            names.into_iter().find_map(|name| {
                let value = variable(name).filter(|value| !value.trim().is_empty())?;
                Some(Proxy::parse(name, value.trim()))
            })
        };
        let all = find(["ALL_PROXY", "all_proxy"]);
        Self {
            http: find(["HTTP_PROXY", "http_proxy"]).or_else(|| all.clone()),
            https: find(["HTTPS_PROXY", "https_proxy"]).or(all),
            exceptions: ["NO_PROXY", "no_proxy"]
                .into_iter()
                .find_map(|name| variable(name).filter(|value| !value.trim().is_empty()))
                .map(|list| list.split(',').filter_map(Exception::parse).collect())
                .unwrap_or_default(),
        }
    }

    /// The proxy that leads to `host` (a name, or an address with or without brackets). `None`: it is reached directly.
    ///
    /// # Errors
    /// When the variable that counts has a value that can't be used.
    pub fn find(&self, scheme: Scheme, host: &str, port: u16) -> Result<Option<&Proxy>, ProxyError> {
        let proxy = match scheme {
            Scheme::Http => &self.http,
            Scheme::Https => &self.https,
        };
        let Some(proxy) = proxy else { return Ok(None) };
        let host = host.trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase();
        let address = host.parse::<IpAddr>().ok().map(|ip| ip.to_canonical());
        let is_own = host == "localhost" || address.is_some_and(|ip| ip.is_loopback());
        if is_own || self.exceptions.iter().any(|exception| exception.matches(&host, address, port)) {
            return Ok(None);
        }
        proxy.as_ref().map(Some).map_err(Clone::clone)
    }
}

/// An HTTP proxy.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    variable: &'static str,
    host: String,
    port: u16,
    is_tls: bool,
    /// What goes behind `Proxy-Authorization: Basic`.
    authorization: Option<Secret>,
}

impl Proxy {
    /// Its host: a name, or an address without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether the proxy itself is spoken to over TLS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// The variable that named it.
    #[must_use]
    pub fn variable(&self) -> &'static str {
        self.variable
    }

    /// Its URL, without who we are to it.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.is_tls { "https" } else { "http" };
        format!("{scheme}://{}", authority(&self.host, self.port))
    }

    /// The value of the header `Proxy-Authorization`, if it wants one.
    #[must_use]
    pub fn authorization(&self) -> Option<Secret> {
        let credentials = self.authorization.as_ref()?;
        Some(Secret::new(format!("Basic {}", credentials.expose())))
    }

    /// What it is sent to be connected with `host` (a name, or an address without brackets). `None`: that can't be a host.
    #[must_use]
    pub fn connect_request(&self, host: &str, port: u16) -> Option<Secret> {
        if !is_host(host) {
            return None;
        }
        let target = authority(host, port);
        let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
        if let Some(value) = &self.authorization {
            request.reserve_exact(value.expose().len() + 64);
            request.push_str("Proxy-Authorization: Basic ");
            request.push_str(value.expose());
            request.push_str("\r\n");
        }
        request.push_str("\r\n");
        Some(Secret::new(request))
    }

    /// Reads `[http[s]://][USER[:PASSWORD]@]HOST[:PORT][/]`.
    fn parse(variable: &'static str, text: &str) -> Result<Self, ProxyError> {
        let error = |why| ProxyError { variable, why };
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let is_tls = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            "socks" | "socks4" | "socks4a" | "socks5" | "socks5h" => return Err(error("it is a SOCKS proxy")),
            _ => return Err(error("its scheme is neither http nor https")),
        };
        let place = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (user, place) = match place.rsplit_once('@') {
            Some((user, place)) => (Some(user), place),
            None => (None, place),
        };
        let (host, port) = split_port(place).ok_or_else(|| error("its host or port can't be read"))?;
        let authorization = user.map(|user| credentials(user).ok_or_else(|| error("its user name can't be read")));
        Ok(Self {
            variable,
            host: host.to_ascii_lowercase(),
            port: port.unwrap_or(if is_tls { 443 } else { 80 }),
            is_tls,
            authorization: authorization.transpose()?,
        })
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("url", &self.url()).finish_non_exhaustive()
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (from {})", self.url(), self.variable)
    }
}

/// A variable of the environment that names no proxy that can be used. Never has its value in it, which may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the proxy in {variable} can't be used: {why}; it must be http[s]://[USER:PASSWORD@]HOST[:PORT], or the target in NO_PROXY"
)]
pub struct ProxyError {
    /// The variable's name.
    pub variable: &'static str,
    /// What is wrong with its value.
    pub why: &'static str,
}

/// `host:port`, with brackets around an IPv6 address.
fn authority(host: &str, port: u16) -> String {
    match host.parse::<Ipv6Addr>() {
        Ok(ip) => format!("[{ip}]:{port}"),
        Err(_) => format!("{host}:{port}"),
    }
}

/// `host[:port]` apart; the host without brackets. `None`: that can't be a host, or not a port.
fn split_port(place: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match place.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            host.parse::<Ipv6Addr>().ok()?;
            (host, port.strip_prefix(':').or(if port.is_empty() { Some("") } else { None })?)
        }
        // More colons than one: an IPv6 address without a port.
        None if place.parse::<Ipv6Addr>().is_ok() => (place, ""),
        None => place.split_once(':').unwrap_or((place, "")),
    };
    if !is_host(host) {
        return None;
    }
    match port {
        "" => Some((host, None)),
        port if port.bytes().all(|digit| digit.is_ascii_digit()) => port.parse().ok().map(|port| (host, Some(port))),
        _ => None,
    }
}

fn is_host(text: &str) -> bool {
    let may_be = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    !text.is_empty() && text.len() <= MAX_HOST && text.chars().all(may_be)
}

/// `USER[:PASSWORD]` of a URL as `Basic` wants it (RFC 7617): percent-decoded, and in base64.
fn credentials(text: &str) -> Option<Secret> {
    let mut decoded = Vec::with_capacity(text.len() + 1);
    let mut has_password = false;
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
                let (high, low) = (digit()?, digit()?);
                decoded.push(high << 4 | low);
            }
            b':' if !has_password => {
                has_password = true;
                decoded.push(byte);
            }
            _ => decoded.push(byte),
        }
    }
    if !has_password {
        decoded.push(b':');
    }
    let decoded = zeroize::Zeroizing::new(decoded);
    // Otherwise the name would end at another colon than it does here, or the header would.
    (!decoded.iter().any(u8::is_ascii_control)).then(|| Secret::new(STANDARD.encode(decoded.as_slice())))
}

#[cfg(test)]
mod tests;
