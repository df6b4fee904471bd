//! Tailscale's own relay: DERP over TLS, and STUN, on loopback unless it is put elsewhere.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use tempfile::TempDir;

use super::network::answers;
use super::process::Process;
use super::{Lost, PATIENCE, free_tcp_port, free_udp_port, start_with_ports, wait_for};

/// The region that the relay serves.
pub const REGION: u16 = 900;

/// Where a relay is.
#[derive(Clone, Debug)]
pub struct Site {
    /// Words before those of its program, which lead into another network namespace.
    pub entrance: Vec<String>,
    /// Its IPv4 address, which is its name, too.
    pub v4: Ipv4Addr,
    /// Its IPv6 address. Where it has one, it listens on all addresses that there are.
    pub v6: Option<Ipv6Addr>,
    /// Where DERP over TLS is served.
    pub derp_port: u16,
    /// Where STUN is served.
    pub stun_port: u16,
}

/// A `derper` with a self-signed certificate, which clients know by its pin.
pub struct Relay {
    process: Process,
    program: PathBuf,
    site: Site,
    /// The DERP map's `CertName`: `sha256-raw:` and the certificate's SHA-256 in hex.
    pub cert_name: String,
    folder: TempDir,
}

/// The last that it says before it listens.
const SERVES: &str = "derper: serving on ";

impl Relay {
    /// Starts one and waits until it serves.
    pub fn start(derper: &Path) -> Self {
        start_with_ports(|| {
            let (derp_port, stun_port) = (free_tcp_port(), free_udp_port());
            let site = Site { entrance: Vec::new(), v4: Ipv4Addr::LOCALHOST, v6: None, derp_port, stun_port };
            Self::try_start(derper, site)
        })
    }

    /// Starts one at a place that is known to be free.
    pub fn start_at(derper: &Path, site: Site) -> Self {
        Self::try_start(derper, site).unwrap_or_else(|Lost(why)| panic!("derper did not start: {why}"))
    }

    fn try_start(derper: &Path, site: Site) -> Result<Self, Lost> {
        let folder = tempfile::tempdir().expect("a folder");
        let (process, cert_name) = Self::serve(derper, folder.path(), &site)?;
        Ok(Self { process, program: derper.to_owned(), site, cert_name, folder })
    }

    /// Starts the program with what is in `folder`, and waits until it listens; returns its pin, too.
    fn serve(derper: &Path, folder: &Path, site: &Site) -> Result<(Process, String), Lost> {
        let at = |name: &str| folder.join(name).display().to_string();
        let &Site { v4, v6, derp_port, stun_port, .. } = site;
        let mut words = site.entrance.clone();
        words.extend([
            derper.display().to_string(),
            "-a".to_owned(),
            if v6.is_some() { format!(":{derp_port}") } else { format!("{v4}:{derp_port}") },
            format!("-hostname={v4}"),
            "-certmode=manual".to_owned(),
            format!("-certdir={}", at("certs")),
            "-c".to_owned(),
            at("derper.key"),
            "-http-port=-1".to_owned(),
            format!("-stun-port={stun_port}"),
        ]);
        let (log, home) = (folder.join("log"), at("home"));
        let served_before = std::fs::read_to_string(&log).unwrap_or_default().matches(SERVES).count();
        let mut process = Process::start("derper", Path::new(&words[0]), &words[1..], [("HOME", home.as_str())], &log);
        let pin = wait_for("derper's certificate pin", PATIENCE, || {
            if process.ended().is_some() {
                return Some(Err(Lost(process.log())));
            }
            let log = process.log();
            let (_, rest) = log.split_once("\"CertName\":\"")?;
            let (pin, _) = rest.split_once('"')?;
            // It tells its pin before it listens.
            let serves =
                log.matches(SERVES).count() > served_before && answers(&site.entrance, &format!("{v4}:{derp_port}"));
            serves.then(|| Ok(pin.to_owned()))
        })?;
        Ok((process, pin))
    }

    /// Kills it, so that it has no time to say goodbye.
    pub fn kill(&mut self) {
        self.process.signal(Signal::KILL);
        self.process.wait(PATIENCE);
    }

    /// Starts it anew where it was, after a [`Relay::kill`], and waits until it serves.
    pub fn restart(&mut self) {
        let back = Self::serve(&self.program, self.folder.path(), &self.site);
        (self.process, _) = back.expect("a relay comes back");
    }

    /// Where DERP over TLS is served.
    pub fn derp_port(&self) -> u16 {
        self.site.derp_port
    }

    /// Where STUN is served.
    pub fn stun_port(&self) -> u16 {
        self.site.stun_port
    }

    /// The relay as a DERP map file for headscale (YAML).
    pub fn map_file(&self) -> String {
        let Site { v4, v6, derp_port, stun_port, .. } = &self.site;
        let (cert_name, v6) = (&self.cert_name, v6.map_or_else(|| "none".to_owned(), |v6| v6.to_string()));
        format!(
            "regions:\n  {REGION}:\n    regionid: {REGION}\n    regioncode: lab\n    regionname: Lab\n    nodes:\n      \
             - name: lab1\n        regionid: {REGION}\n        hostname: {v4}\n        certname: \"{cert_name}\"\n        \
             ipv4: {v4}\n        ipv6: \"{v6}\"\n        stunport: {stun_port}\n        derpport: {derp_port}\n"
        )
    }
}
