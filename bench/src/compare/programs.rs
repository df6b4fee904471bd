//! What is measured, as programs on this machine, and who is left out where one is missing.

use std::error::Error;
use std::path::{Path, PathBuf};

use super::plan::Peer;
use super::{Args, ssh_tunnel, wireguard};
use crate::stage::find;

/// What scripts/peers builds.
const TSNET: [&str; 1] = ["tsnet-peer"];
const TAILSCALED: [&str; 2] = ["tailscaled", "tailscale"];
const RELAY: [&str; 2] = ["headscale", "derper"];

/// Where programs are.
#[derive(Debug)]
pub(super) struct Programs {
    own: PathBuf,
    pub(super) nixtail: PathBuf,
    peers: PathBuf,
}

impl Programs {
    /// Looks for nixtail; the peers may be missing.
    pub(super) fn find(args: &Args) -> Result<Self, Box<dyn Error>> {
        let own = std::env::current_exe()?;
        let nixtail = args.nixtail.clone().unwrap_or_else(|| own.with_file_name("nixtail"));
        if !nixtail.is_file() {
            let told = nixtail.display();
            return Err(
                format!("{told} isn't there; build it (`cargo build --release`) or name one with --nixtail").into()
            );
        }
        Ok(Self { own, nixtail, peers: args.peers.clone().unwrap_or_else(|| PathBuf::from(".cache/peers")) })
    }

    /// All that are there, by the name that they get on the stage.
    pub(super) fn list(&self) -> Vec<(&'static str, PathBuf)> {
        let peers = TSNET.iter().chain(&TAILSCALED).chain(&RELAY);
        let peers = peers.map(|name| (*name, self.peers.join(name))).filter(|(_, path)| path.is_file());
        [("nixtail-bench", self.own.clone()), ("nixtail", self.nixtail.clone())].into_iter().chain(peers).collect()
    }

    /// Whoever can't be measured; why goes to `left_out`.
    pub(super) fn lacking(&self, left_out: &mut Vec<String>) -> Vec<Peer> {
        let mut without = self.lacking_peers(left_out);
        for (programs, who, peer) in [
            (wireguard::PROGRAMS.as_slice(), "wireguard-go", Peer::Wireguard),
            (&ssh_tunnel::PROGRAMS, "OpenSSH", Peer::OpenSsh),
        ] {
            let missing: Vec<&str> = programs.iter().copied().filter(|program| find(program).is_none()).collect();
            if !missing.is_empty() {
                left_out.push(format!("{who}: {} isn't on PATH", missing.join(", ")));
                without.push(peer);
            }
        }
        without
    }

    /// Of those that scripts/peers builds.
    pub(super) fn lacking_peers(&self, left_out: &mut Vec<String>) -> Vec<Peer> {
        let mut without = Vec::new();
        let needs: [(&[&str], &str, &[Peer]); 3] = [
            (&TSNET, "tsnet and bare DERP clients", &[Peer::Tsnet, Peer::TsnetToTun, Peer::TunToTsnet, Peer::BareDerp]),
            (
                &TAILSCALED,
                "tailscaled",
                &[
                    Peer::Userspace,
                    Peer::Tun,
                    Peer::NixtailToTun,
                    Peer::TsnetToTun,
                    Peer::TunToNixtail,
                    Peer::TunToTsnet,
                ],
            ),
            (&RELAY, "Tailscale's relay", &[]),
        ];
        for (programs, who, peers) in needs {
            if !programs.iter().all(|name| self.peers.join(name).is_file()) {
                let folder = self.peers.display();
                left_out.push(format!("{who}: {folder} lacks {} (scripts/peers builds it)", programs.join(" or ")));
                without.extend_from_slice(peers);
            }
        }
        without
    }

    /// Puts all of them into one folder, by links.
    pub(super) fn link_into(&self, folder: &Path) -> Result<(), Box<dyn Error>> {
        std::fs::create_dir_all(folder)?;
        for (name, path) in self.list() {
            std::os::unix::fs::symlink(path.canonicalize()?, folder.join(name))?;
        }
        Ok(())
    }
}
