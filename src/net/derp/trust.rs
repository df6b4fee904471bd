//! Whose certificate a relay must show: what the DERP map says of it.

use nixtail_proto::tailcfg::DerpNode;
use rustls::pki_types::ServerName;

use crate::net::tls::Trust;

/// In front of a pin in the DERP map's `CertName`: the SHA-256 of the relay's own certificate, in hex.
const PIN_PREFIX: &str = "sha256-raw:";

/// What TLS is to check of a relay. A pin counts even where the map says `InsecureForTests`, as in Go. `None` when the
/// map's `CertName` is neither a name nor a pin.
pub(super) fn trust(node: &DerpNode) -> Option<Trust> {
    if let Some(hex) = node.cert_name.strip_prefix(PIN_PREFIX) {
        return parse_pin(hex).map(Trust::Pin);
    }
    if node.insecure_for_tests {
        return Some(Trust::Anybody);
    }
    match node.cert_name.as_str() {
        "" => Some(Trust::System),
        name => ServerName::try_from(name.to_owned()).ok().map(Trust::SystemAs),
    }
}

fn parse_pin(hex: &str) -> Option<[u8; 32]> {
    let mut pin = [0; 32];
    let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
    if pairs.len() != pin.len() || !rest.is_empty() {
        return None;
    }
    let digit = |c: u8| char::from(c).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    for (byte, [high, low]) in pin.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(pin)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(cert_name: &str, insecure_for_tests: bool) -> DerpNode {
        DerpNode { cert_name: cert_name.to_owned(), insecure_for_tests, ..DerpNode::default() }
    }

    #[test]
    fn pins_are_64_hex_digits() {
        assert_eq!(parse_pin(&"0aF1".repeat(16)).unwrap()[..4], [0x0a, 0xf1, 0x0a, 0xf1]);
        for wrong in ["", "0a", &"0".repeat(63), &"0".repeat(65), &"0g".repeat(32), &"é".repeat(32)] {
            assert_eq!(parse_pin(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_map_says_whom_to_trust() {
        let pin = format!("{PIN_PREFIX}{}", "07".repeat(32));
        assert_eq!(trust(&node("", false)), Some(Trust::System));
        assert_eq!(trust(&node("", true)), Some(Trust::Anybody));
        assert_eq!(trust(&node(&pin, false)), Some(Trust::Pin([7; 32])));
        assert_eq!(trust(&node(&pin, true)), Some(Trust::Pin([7; 32])), "a pin counts before insecure");
        assert!(matches!(trust(&node("other.example", false)), Some(Trust::SystemAs(_))));
        assert_eq!(trust(&node("no name\r\n", false)), None);
        assert_eq!(trust(&node("sha256-raw:12", true)), None);
    }
}
