//! Tailscale's own relay: DERP over TLS, and STUN, on loopback.

use std::net::TcpStream;
use std::path::Path;

use tempfile::TempDir;

use super::process::Process;
use super::{Lost, PATIENCE, free_tcp_port, free_udp_port, start_with_ports, wait_for};

/// The region that the relay serves.
pub const REGION: u16 = 900;

/// A `derper` with a self-signed certificate, which clients know by its pin.
pub struct Relay {
    process: Process,
    /// Where DERP over TLS is served, on 127.0.0.1.
    pub derp_port: u16,
    /// Where STUN is served, on 127.0.0.1.
    pub stun_port: u16,
    /// The DERP map's `CertName`: `sha256-raw:` and the certificate's SHA-256 in hex.
    pub cert_name: String,
    _folder: TempDir,
}

impl Relay {
    /// Starts one and waits until it serves.
    pub fn start(derper: &Path) -> Self {
        start_with_ports(|| Self::try_start(derper))
    }

    fn try_start(derper: &Path) -> Result<Self, Lost> {
        let folder = tempfile::tempdir().expect("a folder");
        let (derp_port, stun_port) = (free_tcp_port(), free_udp_port());
        let at = |name: &str| folder.path().join(name).display().to_string();
        let mut process = Process::start(
            "derper",
            derper,
            [
                "-a".to_owned(),
                format!("127.0.0.1:{derp_port}"),
                "-hostname=127.0.0.1".to_owned(),
                "-certmode=manual".to_owned(),
                format!("-certdir={}", at("certs")),
                "-c".to_owned(),
                at("derper.key"),
                "-http-port=-1".to_owned(),
                format!("-stun-port={stun_port}"),
            ],
            [("HOME", at("home").as_str())],
            &folder.path().join("log"),
        );
        let pin = wait_for("derper's certificate pin", PATIENCE, || {
            if process.ended().is_some() {
                return Some(Err(Lost(process.log())));
            }
            let log = process.log();
            let (_, rest) = log.split_once("\"CertName\":\"")?;
            let (pin, _) = rest.split_once('"')?;
            // It tells its pin before it listens.
            TcpStream::connect(("127.0.0.1", derp_port)).ok().map(|_| Ok(pin.to_owned()))
        })?;
        Ok(Self { process, derp_port, stun_port, cert_name: pin, _folder: folder })
    }

    /// The relay as a DERP map file for headscale (YAML).
    pub fn map_file(&self) -> String {
        let Self { derp_port, stun_port, cert_name, .. } = self;
        format!(
            "regions:\n  {REGION}:\n    regionid: {REGION}\n    regioncode: lab\n    regionname: Lab\n    nodes:\n      \
             - name: lab1\n        regionid: {REGION}\n        hostname: 127.0.0.1\n        certname: \"{cert_name}\"\n        \
             ipv4: 127.0.0.1\n        ipv6: none\n        stunport: {stun_port}\n        derpport: {derp_port}\n"
        )
    }
}
