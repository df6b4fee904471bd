//! The relay's certificate: self-signed, made at each start, told to nodes by its hash.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest as _, Sha256};

use crate::error::DevnetError;

/// A certificate for `names` as a server's configuration, and the SHA-256 of its DER form in hex, as
/// `DERPNode.CertName` has it behind `sha256-raw:`.
pub(crate) fn self_signed(names: Vec<String>) -> Result<(Arc<ServerConfig>, String), DevnetError> {
    let wrong = |error: &dyn std::fmt::Display| DevnetError::Certificate(error.to_string());
    let made = rcgen::generate_simple_self_signed(names).map_err(|error| wrong(&error))?;
    let certificate = made.cert.der().clone();
    let mut hash = String::new();
    for byte in Sha256::digest(&certificate) {
        hash.push_str(&format!("{byte:02x}"));
    }
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(&error))?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .map_err(|error| wrong(&error))?;
    Ok((Arc::new(config), hash))
}
