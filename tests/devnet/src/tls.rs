//! The relay's certificates: its own, self-signed, made at each start and told to nodes by its hash; and one behind it that
//! tells the relay's key, as Go's relay does (`derp/derpserver/derpserver.go`, `initMetacert`).

use std::sync::Arc;

use nixtail_proto::derp::{CERTIFICATE_NAME_PREFIX, PROTOCOL_VERSION};
use nixtail_proto::key::NodePublic;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest as _, Sha256};

use crate::error::DevnetError;

/// A certificate for `names` as the configuration of the server with the key `relay`, and the SHA-256 of its DER form in
/// hex, as `DERPNode.CertName` has it behind `sha256-raw:`.
pub(crate) fn self_signed(names: Vec<String>, relay: &NodePublic) -> Result<(Arc<ServerConfig>, String), DevnetError> {
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
        .with_single_cert(vec![certificate, tell_key(relay).map_err(|error| wrong(&error))?], key)
        .map_err(|error| wrong(&error))?;
    Ok((Arc::new(config), hash))
}

/// A certificate that certifies nothing and tells the relay's key.
fn tell_key(relay: &NodePublic) -> Result<CertificateDer<'static>, rcgen::Error> {
    let key = relay.to_string();
    let name = format!("{CERTIFICATE_NAME_PREFIX}{}", key.trim_start_matches(NodePublic::PREFIX));
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(u64::from(PROTOCOL_VERSION).into());
    Ok(params.self_signed(&KeyPair::generate()?)?.der().clone())
}
