//! What a builder tells the tailnet of its SSH host key, and when.

use nixtail_devnet::{AuthKeyOptions, Call, Config, Devnet, Policy};
use rustix::process::Signal;
use serde_json::json;
use tokio::runtime::Runtime;

use crate::lab::nixtail::Nixtail;
use crate::nix_at_hand::{Place, Programs, make_removable};

/// Thing 18 that independent clients get wrong: who sees the builder may connect at once, and must know its host key then.
#[test]
fn the_host_key_is_published_before_anybody_can_connect() {
    let Some(_) = Programs::find() else { return };
    let runtime = Runtime::new().unwrap();
    let config = Config { policy: Policy::allow_all(), ..Config::default() };
    let devnet = runtime.block_on(Devnet::start(config)).unwrap();
    let key = devnet.add_auth_key(AuthKeyOptions { ephemeral: true, ..AuthKeyOptions::default() }).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let place = Place::make(folder.path().join("builder"), 1);
    let (store, environment) = (place.store().display().to_string(), place.environment());
    let args = ["--store", &store];
    let mut builder = Nixtail::start_in("builder", &devnet.url(), key.expose(), "builder", &args, &environment);

    let keys = devnet.node("builder").unwrap().ssh_host_keys;
    assert!(keys.len() == 1 && keys[0].starts_with("ssh-ed25519 "), "{keys:?}");
    for call in [Call::Register, Call::Map, Call::Update] {
        let calls = devnet.calls(call);
        assert!(!calls.is_empty(), "{call:?}");
        for said in calls {
            assert_eq!(said.body["Hostinfo"]["sshHostKeys"], json!(keys), "{call:?}");
        }
    }
    assert!(builder.end(Signal::TERM).success());
    make_removable(folder.path());
    runtime.block_on(devnet.shutdown());
}
