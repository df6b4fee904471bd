//! Whether a relay is the one that the DERP map means: by its certificate's name, by a pin, or (in tests) not at all.

use std::sync::Arc;

use nixtail_proto::tailcfg::DerpNode;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use sha2::{Digest as _, Sha256};

/// In front of a pin in the DERP map's `CertName`: the SHA-256 of the relay's own certificate, in hex.
const PIN_PREFIX: &str = "sha256-raw:";

/// What TLS is to check of one relay. Loads the system's roots, unless the map does without; so it may block for some
/// milliseconds.
///
/// # Errors
/// When the map's `CertName` is neither a name nor a pin, or when the system's roots can't be loaded.
pub(super) fn config(node: &DerpNode) -> Result<ClientConfig, Error> {
    let provider = Arc::new(ring::default_provider());
    let check = if let Some(hex) = node.cert_name.strip_prefix(PIN_PREFIX) {
        Check::Pin(parse_pin(hex).ok_or_else(|| bad_name(&node.cert_name))?)
    } else if node.insecure_for_tests {
        Check::Nothing
    } else {
        let roots = rustls_platform_verifier::Verifier::new(Arc::clone(&provider))?;
        match node.cert_name.as_str() {
            "" => Check::Name { roots, name: None },
            name => {
                let name = ServerName::try_from(name.to_owned()).map_err(|_| bad_name(name))?;
                Check::Name { roots, name: Some(name) }
            }
        }
    };
    let verifier = RelayVerifier { check, provider: Arc::clone(&provider) };
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let verifier = Arc::new(verifier);
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

#[derive(Debug)]
struct RelayVerifier {
    check: Check,
    provider: Arc<CryptoProvider>,
}

#[derive(Debug)]
enum Check {
    /// The chain leads to a root of the system, for this name or the one that was dialled.
    Name { roots: rustls_platform_verifier::Verifier, name: Option<ServerName<'static>> },
    /// The relay's certificate is this one. It may be self-signed; names and dates say nothing more than the pin does.
    Pin([u8; 32]),
    /// The map says `InsecureForTests`.
    Nothing,
}

impl ServerCertVerifier for RelayVerifier {
    /// Relays append a certificate of their own making, which carries their DERP key: a chain is built without it.
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.check {
            Check::Name { roots, name } => {
                let name = name.as_ref().unwrap_or(server_name);
                roots.verify_server_cert(end_entity, intermediates, name, ocsp_response, now)
            }
            Check::Pin(pin) if Sha256::digest(end_entity).as_slice() == pin => Ok(ServerCertVerified::assertion()),
            Check::Pin(_) => Err(CertificateError::ApplicationVerificationFailure.into()),
            Check::Nothing => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
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

fn bad_name(name: &str) -> Error {
    let shown: String = name.chars().filter(|c| !c.is_control()).take(100).collect();
    Error::General(format!("the DERP map's certificate name {shown:?} is neither a DNS name nor a pin"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_64_hex_digits() {
        assert_eq!(parse_pin(&"0aF1".repeat(16)).unwrap()[..4], [0x0a, 0xf1, 0x0a, 0xf1]);
        for wrong in ["", "0a", &"0".repeat(63), &"0".repeat(65), &"0g".repeat(32), &"é".repeat(32)] {
            assert_eq!(parse_pin(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_pin_counts_before_insecure() {
        let pin = format!("{PIN_PREFIX}{}", "00".repeat(32));
        let node = DerpNode { cert_name: pin, insecure_for_tests: true, ..DerpNode::default() };
        let config = config(&node).unwrap();
        assert!(config.alpn_protocols.is_empty());
        let node = DerpNode { cert_name: format!("{PIN_PREFIX}12"), insecure_for_tests: true, ..DerpNode::default() };
        assert!(super::config(&node).is_err());
    }
}
