//! A devnet, a real builder on it, and nodes of the test's own that make it work.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use nixtail::agent::{Agent, Config, PingKind, Stream};
use nixtail::auth::Credential;
use nixtail_devnet::{AuthKeyOptions, BUILDER_TAG, COORDINATOR_TAG, Config as DevnetConfig, Devnet};
use nixtail_proto::direct::{Decoder, Event, Output};
use nixtail_proto::netmap::Netmap;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::PATIENCE;
use crate::lab::nixtail::Nixtail;
use crate::lab::peers;
use crate::lab::process::run_ok;
use crate::nix_at_hand::{Place, make_removable};

/// The builder's name.
pub(crate) const BUILDER: &str = "builder";
/// As whom it lets coordinators in.
pub(crate) const LOGIN: &str = "nix";
/// What a fetch gives: enough to take a while.
const CONTENT: usize = 24 << 20;

/// The tailnet, and the builder under fire.
pub(crate) struct Stage {
    pub(crate) builder: Nixtail,
    pub(crate) devnet: Devnet,
    /// A path in the builder's store, and what it is as an archive.
    path: String,
    archive: Vec<u8>,
    place: Place,
    _folder: TempDir,
}

impl Stage {
    /// Starts both. `None` when a program is missing.
    pub(crate) async fn start() -> Option<Self> {
        let nix_store = peers::require_on_path("nix-store")?;
        peers::require_on_path("nix-daemon")?;
        let folder = tempfile::tempdir().unwrap();
        let place = Place::make(folder.path().join("place"), 1);
        let content: Vec<u8> = (0..CONTENT).map(|at| (at % 251) as u8).collect();
        let file = folder.path().join("content");
        fs::write(&file, &content).unwrap();
        let store = place.store().display().to_string();
        let mut add = place.command(&nix_store);
        let path = run_ok(add.args(["--store", &store, "--add"]).arg(&file), PATIENCE).trim().to_owned();

        let devnet = Devnet::start(DevnetConfig::default()).await.unwrap();
        let key = key(&devnet, BUILDER_TAG);
        let args = ["--store", &store, "--login", LOGIN];
        let builder = Nixtail::start_in("builder", &devnet.url(), &key, BUILDER, &args, &place.environment());
        Some(Self { builder, devnet, path, archive: archive(&content), place, _folder: folder })
    }

    /// A node of this process that may use the builder.
    pub(crate) async fn coordinator(&self, name: &str) -> Agent {
        join(&self.devnet, name, COORDINATOR_TAG, true).await
    }

    /// Opens a connection to the builder's only port.
    pub(crate) async fn dial(&self, from: &Agent) -> Stream {
        timeout(PATIENCE, from.dial(BUILDER, 22)).await.expect("a connection in time").unwrap()
    }

    /// Fetches a path out of the builder's store through the tunnel, and sees that every byte is right.
    pub(crate) async fn fetch(&self, from: &Agent) {
        let mut stream = self.dial(from).await;
        // `nix-store --serve`: greeting, version, the command that dumps a path.
        let number = |number: u64| number.to_le_bytes().to_vec();
        let input = [number(0x390c_9deb), number(0x205), number(3), string(self.path.as_bytes())].concat();
        let request = format!("nixtail-direct 1 {LOGIN} nix-store --serve --write\n");
        stream.write_all(&[request.into_bytes(), input].concat()).await.unwrap();
        // Its own greeting and version come first.
        let (greeting, mut got) = (16, Vec::new());
        let (mut decoder, mut buffer) = (Decoder::new(), vec![0; 64 << 10]);
        while got.len() < greeting + self.archive.len() {
            let length = timeout(PATIENCE, stream.read(&mut buffer)).await.expect("the transfer goes on").unwrap();
            assert!(length > 0, "it ended after {} bytes", got.len());
            let mut bytes = &buffer[..length];
            while let Some(event) = decoder.next_event(&mut bytes).unwrap() {
                match event {
                    Event::Accepted => {}
                    Event::Output(Output::Data, data) => got.extend_from_slice(data),
                    other => panic!("{other:?}"),
                }
            }
        }
        assert!(got[greeting..] == self.archive, "wrong bytes");
    }

    /// The builder goes on with its work: who can't see the garbage sees nothing of it.
    pub(crate) async fn assert_well(&mut self, from: &Agent) {
        from.ping(BUILDER, PingKind::Disco, PATIENCE).await.unwrap();
        self.fetch(from).await;
        assert_eq!(self.builder.status()["self"]["name"], BUILDER);
        let log = self.builder.log();
        assert!(!log.contains("panicked"), "{log}");
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        make_removable(&self.place.store());
    }
}

/// A key for nodes with one tag.
pub(crate) fn key(devnet: &Devnet, tag: &str) -> String {
    let tags = vec![tag.to_owned()];
    let options = AuthKeyOptions { reusable: true, ephemeral: true, tags, ..AuthKeyOptions::default() };
    devnet.add_auth_key(options).unwrap().expose().to_owned()
}

/// A node of this process.
pub(crate) async fn join(devnet: &Devnet, name: &str, tag: &str, direct: bool) -> Agent {
    let key = key(devnet, tag);
    let config = Config {
        tags: vec![tag.to_owned()],
        direct,
        ..Config::new(devnet.url(), Some(Credential::parse("TS_AUTHKEY", &key).unwrap()), name.to_owned())
    };
    Agent::join(config).await.unwrap()
}

/// Waits until `agent` sees a peer of that name, and returns the netmap that has it.
pub(crate) async fn netmap_with(agent: &Agent, name: &str) -> Arc<Netmap> {
    let mut netmap = agent.netmap();
    let has = |netmap: &Option<Arc<Netmap>>| {
        netmap.as_ref().is_some_and(|netmap| netmap.peers.values().any(|peer| peer.short_name() == name))
    };
    let found = timeout(PATIENCE, netmap.wait_for(has)).await.expect("the peer in time").unwrap();
    found.clone().unwrap()
}

/// Waits until `holds`.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    assert!(timeout(PATIENCE, waiting).await.is_ok(), "waited in vain for {what}");
}

/// A file as Nix archives it.
fn archive(content: &[u8]) -> Vec<u8> {
    let words = ["nix-archive-1", "(", "type", "regular", "contents"];
    let mut archive: Vec<u8> = words.iter().flat_map(|word| string(word.as_bytes())).collect();
    archive.extend(string(content));
    archive.extend(string(b")"));
    archive
}

/// Length, bytes, zeros up to the next multiple of eight.
fn string(bytes: &[u8]) -> Vec<u8> {
    let mut string = (bytes.len() as u64).to_le_bytes().to_vec();
    string.extend_from_slice(bytes);
    string.resize(string.len().next_multiple_of(8), 0);
    string
}
