use proptest::prelude::*;

use super::*;

fn proxies(variables: &[(&str, &str)]) -> Proxies {
    Proxies::read(|name| variables.iter().find(|(own, _)| *own == name).map(|(_, value)| (*value).to_owned()))
}

fn found(proxies: &Proxies, scheme: Scheme, host: &str, port: u16) -> Option<String> {
    proxies.find(scheme, host, port).unwrap().map(Proxy::url)
}

#[test]
fn each_scheme_has_its_variable_and_all_proxy_stands_in() {
    let both = proxies(&[("HTTPS_PROXY", "http://secure:1"), ("http_proxy", "plain:2"), ("ALL_PROXY", "http://any:3")]);
    assert_eq!(found(&both, Scheme::Https, "x.org", 443).as_deref(), Some("http://secure:1"));
    assert_eq!(found(&both, Scheme::Http, "x.org", 80).as_deref(), Some("http://plain:2"));
    let all = proxies(&[("all_proxy", "https://any")]);
    assert_eq!(found(&all, Scheme::Https, "x.org", 443).as_deref(), Some("https://any:443"));
    assert_eq!(found(&all, Scheme::Http, "x.org", 80).as_deref(), Some("https://any:443"));
    let upper = proxies(&[("HTTPS_PROXY", "upper"), ("https_proxy", "lower")]);
    assert_eq!(found(&upper, Scheme::Https, "x.org", 443).as_deref(), Some("http://upper:80"));
    assert_eq!(found(&proxies(&[("HTTPS_PROXY", "  ")]), Scheme::Https, "x.org", 443), None);
    assert_eq!(found(&Proxies::default(), Scheme::Https, "x.org", 443), None);
}

#[test]
fn loopback_is_never_proxied() {
    let all = proxies(&[("ALL_PROXY", "http://p:1")]);
    for host in ["localhost", "LOCALHOST", "localhost.", "127.0.0.1", "127.8.9.10", "::1", "[::1]", "::ffff:127.0.0.1"]
    {
        assert_eq!(found(&all, Scheme::Http, host, 80), None, "{host}");
    }
    assert!(found(&all, Scheme::Http, "localhost.example", 80).is_some());
}

/// The cases of `golang.org/x/net/http/httpproxy`'s own table that say something else than the ones above.
#[test]
fn no_proxy_says_what_is_reached_directly() {
    let with = |list: &str| proxies(&[("ALL_PROXY", "http://p:1"), ("NO_PROXY", list)]);
    let is_direct = |list: &str, host: &str, port| found(&with(list), Scheme::Https, host, port).is_none();
    for (list, direct, proxied) in [
        (
            "example.com",
            &["example.com", "a.example.com", "A.Example.COM."][..],
            &["notexample.com", "example.com.net"][..],
        ),
        (".example.com", &["a.example.com", "a.b.example.com"], &["example.com", "xexample.com"]),
        ("*.example.com", &["a.example.com"], &["example.com"]),
        ("192.0.2.0/24, 2001:db8::/32", &["192.0.2.9", "2001:db8::5", "[2001:db8::5]"], &["192.0.3.1", "2001:db9::1"]),
        ("192.0.2.1,[2001:db8::1]", &["192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1"], &["192.0.2.10", "2001:db8::2"]),
        (" , ,foo ,", &["foo"], &["bar"]),
        ("*", &["anything", "192.0.2.1"], &[]),
        ("example.com:443, 192.0.2.1:443", &["example.com", "a.example.com", "192.0.2.1"], &["192.0.2.2"]),
        ("example.com:80, 192.0.2.1:80", &[], &["example.com", "192.0.2.1"]),
        (":1,a:b:c,.,*.", &[], &["a", "example.com"]),
    ] {
        for host in direct {
            assert!(is_direct(list, host, 443), "{list}: {host}");
        }
        for host in proxied {
            assert!(!is_direct(list, host, 443), "{list}: {host}");
        }
    }
}

#[test]
fn a_value_that_cannot_be_used_is_an_error_where_it_counts() {
    for (value, why) in [
        ("socks5://h:1", "it is a SOCKS proxy"),
        ("ftp://h", "its scheme is neither http nor https"),
        ("http://", "its host or port can't be read"),
        ("http://h:port", "its host or port can't be read"),
        ("http://h:65536", "its host or port can't be read"),
        ("http://h:+1", "its host or port can't be read"),
        ("http://[::1", "its host or port can't be read"),
        ("http://[h]:1", "its host or port can't be read"),
        ("http://h\r\nx", "its host or port can't be read"),
        ("http://u%0d%0a:hush@h", "its user name can't be read"),
        ("http://u%2:hush@h", "its user name can't be read"),
    ] {
        let proxies = proxies(&[("HTTPS_PROXY", value), ("NO_PROXY", "direct.example")]);
        let error = proxies.find(Scheme::Https, "x.org", 443).unwrap_err();
        assert_eq!(error, ProxyError { variable: "HTTPS_PROXY", why }, "{value}");
        assert!(!format!("{error} {error:?} {proxies:?}").contains("hush"));
        assert_eq!(proxies.find(Scheme::Https, "direct.example", 443), Ok(None));
        assert_eq!(proxies.find(Scheme::Http, "x.org", 80), Ok(None));
    }
}

#[test]
fn a_proxy_is_asked_to_connect() {
    let ask = |value: &str, host: &str| {
        let proxies = proxies(&[("HTTPS_PROXY", value)]);
        let proxy = proxies.find(Scheme::Https, "x.org", 443).unwrap().unwrap();
        assert!(!format!("{proxy:?} {proxy}").contains("hush"));
        proxy.connect_request(host, 443).unwrap().expose().to_owned()
    };
    assert_eq!(ask("http://p:3128", "x.org"), "CONNECT x.org:443 HTTP/1.1\r\nHost: x.org:443\r\n\r\n");
    assert_eq!(ask("p", "2001:db8::1"), "CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\n\r\n");
    // RFC 7617 §2's own example, with its space percent-encoded as in a URL.
    assert_eq!(
        ask("http://Aladdin:open%20sesame@p", "x"),
        "CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\nProxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n\r\n"
    );
    assert!(ask("http://me:hush@p", "x").contains(&STANDARD.encode("me:hush")));
    let proxies = proxies(&[("HTTPS_PROXY", "p")]);
    let proxy = proxies.find(Scheme::Https, "x.org", 443).unwrap().unwrap();
    for host in ["", "x y", "x\r\ny: z", "[::1]", &"x".repeat(300)] {
        assert_eq!(proxy.connect_request(host, 443), None);
    }
    assert!(ask("http://me@p", "x").contains(&STANDARD.encode("me:")));
    assert!(ask("http://a%40b:c:d@p", "x").contains(&STANDARD.encode("a@b:c:d")));
}

proptest! {
    #[test]
    fn any_value_is_read_or_refused(value in "\\PC{0,60}", list in "\\PC{0,60}", host in "\\PC{0,40}", port: u16) {
        let proxies = proxies(&[("ALL_PROXY", &value), ("NO_PROXY", &list)]);
        if let Ok(Some(proxy)) = proxies.find(Scheme::Https, &host, port) {
            prop_assert!(!proxy.host().is_empty());
            if let Some(request) = proxy.connect_request(&host, port) {
                prop_assert!(!request.expose().trim_end().contains("\r\n\r\n"));
            }
        }
    }
}
