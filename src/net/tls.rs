//! TLS for everything that nixtail dials: one crypto provider, and whose certificates are believed.

use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_platform_verifier::Verifier;
use sha2::{Digest, Sha256};

/// Whose certificate is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trust {
    /// One for the name dialled, signed by an authority that this system trusts (`SSL_CERT_FILE` is heeded).
    System,
    /// As [`Self::System`], for this name instead (a DERP node's `CertName`).
    SystemAs(ServerName<'static>),
    /// The one whose leaf has this SHA-256, and no other (a DERP node's `CertName` of the form `sha256-raw:…`).
    Pin([u8; 32]),
    /// Any. Only where something inside the connection proves the other end: ts2021, or a relay that control marked
    /// `InsecureForTests` and whose DERP key is checked.
    Anybody,
}

/// Makes ring the process' crypto provider, as reqwest wants one. May be called any number of times.
pub(crate) fn install_provider() {
    // Fails if there is one already, which is as good.
    drop(rustls::crypto::ring::default_provider().install_default());
}

/// A client's configuration that trusts so. It offers no ALPN: both ts2021 and DERP begin with HTTP/1.1.
///
/// # Errors
/// When the system's authorities can't be read.
pub(crate) fn client_config(trust: Trust) -> Result<Arc<ClientConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match trust {
        Trust::System => system_verifier(&provider)?,
        Trust::SystemAs(name) => Arc::new(NamedVerifier { system: system_verifier(&provider)?, name }),
        Trust::Pin(digest) => Arc::new(LeafVerifier::new(Some(digest), &provider)),
        Trust::Anybody => Arc::new(LeafVerifier::new(None, &provider)),
    };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// The system's authorities, read and parsed once in the life of the process: that takes longer than a handshake.
fn system_verifier(provider: &Arc<CryptoProvider>) -> Result<Arc<Verifier>, rustls::Error> {
    static VERIFIER: OnceLock<Arc<Verifier>> = OnceLock::new();
    if let Some(verifier) = VERIFIER.get() {
        return Ok(Arc::clone(verifier));
    }
    let verifier = Arc::new(Verifier::new(Arc::clone(provider))?);
    Ok(Arc::clone(VERIFIER.get_or_init(|| verifier)))
}

/// The system's verifier, asked for another name than the one dialled.
#[derive(Debug)]
struct NamedVerifier {
    system: Arc<Verifier>,
    name: ServerName<'static>,
}

impl ServerCertVerifier for NamedVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _dialled: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.system.verify_server_cert(leaf, chain, &self.name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.system.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.system.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.system.supported_verify_schemes()
    }
}

/// Looks at the leaf alone: its digest, or nothing. That the other end has its key is checked all the same.
#[derive(Debug)]
struct LeafVerifier {
    digest: Option<[u8; 32]>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl LeafVerifier {
    fn new(digest: Option<[u8; 32]>, provider: &CryptoProvider) -> Self {
        Self { digest, algorithms: provider.signature_verification_algorithms }
    }
}

impl ServerCertVerifier for LeafVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _dialled: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.digest.is_some_and(|digest| digest != <[u8; 32]>::from(Sha256::digest(leaf))) {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_other_protocol_is_offered_than_http_1() {
        for trust in [Trust::Anybody, Trust::Pin([1; 32])] {
            assert!(client_config(trust).unwrap().alpn_protocols.is_empty());
        }
    }
}
