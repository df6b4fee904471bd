//! A pair of sites with control between them, and a transfer both ways that goes on until the test has seen enough.

use std::env;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use crate::end::{self, State};
use crate::lab::nixtail::program;
use crate::lab::process::Process;
use crate::lab::sites::{CONTROL, MORE_STUN, Nat, Place, Side, Site, Sites};
use crate::lab::{PATIENCE, peers, wait_for};

/// How long a path, or bytes, may be waited for. The slowest recovery by design takes some 30 s, on an idle machine.
const RECOVERY: Duration = PATIENCE.saturating_mul(3);
/// How many pairs of the matrix are tried at a time.
const AT_ONCE: usize = 3;
/// How long a pair may take to find a direct path where nobody knows whether it does.
const LUCK: Duration = Duration::from_secs(3);

/// Two agents at two sites, and the stream between them. Dropped, all of it ends.
pub(crate) struct Pair {
    ends: [Process; 2],
    _control: Process,
    folder: TempDir,
    pub(crate) sites: Sites,
}

impl Pair {
    /// Starts a transfer. `None`, and the test is skipped by name, where this user may not have networks.
    pub(crate) fn start(left: Site, right: Site) -> Option<Self> {
        Self::start_in(left, right, false)
    }

    /// As [`Self::start`], but no UDP passes between the sites.
    pub(crate) fn start_apart(left: Site, right: Site) -> Option<Self> {
        Self::start_in(left, right, true)
    }

    fn start_in(left: Site, right: Site, apart: bool) -> Option<Self> {
        for program in ["nft", "conntrack"] {
            peers::require_system_program(program)?;
        }
        let lacking = Sites::lacking();
        if !lacking.is_empty() {
            peers::skip(&lacking.join(", "));
            return None;
        }
        let sites = Sites::start(left, right).unwrap();
        if apart {
            sites.part().unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        let log = |name: &str| folder.path().join(name);
        let nixtail = program().display().to_string();
        let devnet = [&nixtail, "devnet", "--listen", CONTROL, "--stun", MORE_STUN, "--force", "--allow-all"];
        let control = start(&sites, Place::Internet, "devnet", &devnet.map(str::to_owned), &[], &log("devnet.log"));
        let ready = wait_for("the devnet to be ready", PATIENCE, || {
            control.log().lines().find(|line| line.starts_with("ready ")).map(str::to_owned)
        });
        let word = |name: &str| {
            let found = ready.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            found.unwrap_or_else(|| panic!("{name} isn't in {ready}")).to_owned()
        };
        let (url, key, stop) = (word("TS_CONTROL_URL"), word("TS_AUTHKEY"), log("stop").display().to_string());
        let own = env::current_exe().unwrap().display().to_string();
        let ends = [(Side::Left, left), (Side::Right, right)].map(|(side, site)| {
            let (name, port) = (side.to_string(), site.port().to_string());
            let environment =
                [(end::SIDE, &name), (end::URL, &url), (end::KEY, &key), (end::PORT, &port), (end::STOP, &stop)];
            let words = [&own, "process_at_an_end", "--exact", "--nocapture"].map(str::to_owned);
            start(&sites, Place::Host(side), &name, &words, &environment, &log(&name))
        });
        Some(Self { ends, _control: control, folder, sites })
    }

    /// What an end said last. `None` before the stream is there.
    fn state(&self, side: Side) -> Option<State> {
        let log = self.end(side).log();
        // The last line may be half written.
        let (whole, _) = log.rsplit_once('\n')?;
        whole.lines().rev().find_map(|line| line.trim_start_matches("done ").parse().ok())
    }

    fn end(&self, side: Side) -> &Process {
        match side {
            Side::Left => &self.ends[0],
            Side::Right => &self.ends[1],
        }
    }

    /// What both ends said last.
    pub(crate) fn states(&self) -> [Option<State>; 2] {
        [Side::Left, Side::Right].map(|side| self.state(side))
    }

    /// Waits until so many more bytes have arrived at either end.
    pub(crate) fn moves(&self, amount: u64) {
        let received = |state: &Option<State>| state.as_ref().map_or(0, |state| state.received);
        let before = self.states().map(|state| received(&state));
        wait_for(&format!("{amount} bytes after {before:?}, both ways"), RECOVERY, || {
            let now = self.states().map(|state| received(&state));
            before.iter().zip(now).all(|(before, now)| now >= before + amount).then_some(())
        });
    }

    /// Where an end sends to now, if that is directly.
    pub(crate) fn address_used(&self, side: Side) -> Option<SocketAddr> {
        self.state(side)?.direct
    }

    /// Whether an end sends directly now.
    pub(crate) fn is_direct(&self, side: Side) -> bool {
        self.address_used(side).is_some()
    }

    /// Waits until both ends send directly.
    pub(crate) fn wait_until_direct(&self) {
        wait_for("both ends to send directly", RECOVERY, || {
            (self.is_direct(Side::Left) && self.is_direct(Side::Right)).then_some(())
        });
    }

    /// Waits until an end sends to an address that is `wanted`.
    pub(crate) fn wait_until_address_used(&self, side: Side, wanted: impl Fn(SocketAddr) -> bool) -> SocketAddr {
        wait_for(&format!("{side} to send to another address"), RECOVERY, || {
            self.address_used(side).filter(|address| wanted(*address))
        })
    }

    /// Ends the transfer: what either end has sent, the other must have received, each byte in its place.
    pub(crate) fn finish(mut self) {
        std::fs::write(self.folder.path().join("stop"), "").unwrap();
        wait_for("both ends to have received everything", RECOVERY, || {
            self.ends.iter().all(|end| end.log().contains("\ndone ")).then_some(())
        });
        std::fs::write(self.folder.path().join(end::OVER), "").unwrap();
        let ended = self.ends.each_mut().map(|end| end.wait(RECOVERY));
        let [left, right] = self.states().map(Option::unwrap);
        assert!(ended.iter().all(std::process::ExitStatus::success), "{ended:?}: {left:?} {right:?}");
        assert_eq!((left.sent, right.sent), (right.received, left.received));
    }
}

fn start(
    sites: &Sites,
    place: Place,
    name: &str,
    words: &[String],
    environment: &[(&str, &String)],
    log: &Path,
) -> Process {
    let entrance = sites.entrance(place);
    let (enter, more) = entrance.split_first().unwrap();
    let environment = environment.iter().map(|(name, value)| (*name, value.as_str()));
    Process::start(name, Path::new(enter), more.iter().chain(words), environment, log)
}

/// What a pair of sites must come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Direct,
    Relay,
    /// Which of two packets is first decides.
    Either,
}

/// Where either end can be reached by a stranger, or both have ports that can be told in advance and no router that takes
/// the other's first packet for its own, they meet.
fn expected(sites: [Site; 2]) -> Expected {
    let is_reachable = |site: &Site| *site == Site { nat: Nat::Open, wall: false } || site.nat == Nat::Forward;
    let is_predictable = |site: &Site| site.nat != Nat::Hard;
    // Linux gives up to keep the port where a stranger's packet to its own address came first.
    let is_touchy = |site: &Site| site.nat == Nat::Easy && !site.wall;
    if sites.iter().any(is_reachable) {
        Expected::Direct
    } else if !sites.iter().all(is_predictable) {
        Expected::Relay
    } else if sites.iter().any(is_touchy) {
        Expected::Either
    } else {
        Expected::Direct
    }
}

/// Tries all pairs, a few at a time, each with a transfer.
pub(crate) fn try_all(amount: u64) {
    let pairs: Vec<[Site; 2]> = Site::ALL.iter().flat_map(|left| Site::ALL.map(|right| [*left, right])).collect();
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(sites) = pairs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    try_pair(*sites, amount);
                }
            });
        }
    });
}

fn try_pair(sites: [Site; 2], amount: u64) {
    let [left, right] = sites;
    let Some(pair) = Pair::start(left, right) else { return };
    let expected = expected(sites);
    eprintln!("{left} and {right}: {expected:?}");
    if expected == Expected::Direct {
        pair.wait_until_direct();
    }
    pair.moves(amount);
    if expected == Expected::Relay {
        thread::sleep(LUCK);
        assert!(!pair.is_direct(Side::Left) && !pair.is_direct(Side::Right), "{left} {right}: {:?}", pair.states());
    }
    pair.finish();
}
