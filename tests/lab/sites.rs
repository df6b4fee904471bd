//! An internet with two sites, each a router and a host behind it, in network namespaces: `sites.sh` does the work.
//!
//! `tests/nats.rs` and `nixtail-bench nats` both use it: so there is nothing here but std, and errors are for people.
//! What is started in it ends with it at the latest, and with the *thread* that made it. Root isn't needed where the kernel
//! gives ordinary users namespaces.

use std::error::Error;
use std::fmt;
use std::io::{BufRead as _, BufReader, PipeReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::str::FromStr;

const SCRIPT: &str = include_str!("sites.sh");

/// Programs that make it.
const PROGRAMS: [&str; 6] = ["setpriv", "unshare", "nsenter", "ip", "nft", "conntrack"];
/// Where some of them are, and ordinary users may not look.
const SYSTEM_FOLDERS: &str = "/usr/sbin:/sbin";

/// The address of control, relay and STUN.
pub(crate) const CONTROL: &str = "203.0.113.1";
/// Another address for STUN.
pub(crate) const MORE_STUN: &str = "203.0.113.2";
/// The port that leads to the host of a [`Nat::Forward`].
pub(crate) const FORWARDED_PORT: u16 = 41641;

/// How a router translates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nat {
    /// It doesn't: the host has a public address.
    Open,
    /// It keeps ports where it can.
    Easy,
    /// It takes a random port for each destination.
    Hard,
    /// As [`Self::Hard`], and [`FORWARDED_PORT`] leads to the host.
    Forward,
}

/// A router, and the network behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Site {
    pub(crate) nat: Nat,
    /// Whether the router lets in answers only. One that translates takes packets that nobody asked for as its own.
    pub(crate) wall: bool,
}

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Left,
    Right,
}

/// Where a program may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Where everybody can reach it, at [`CONTROL`].
    Internet,
    /// The host of a site.
    Host(Side),
}

/// Two sites.
#[derive(Debug)]
pub(crate) struct Sites {
    keeper: Child,
    /// What the script writes after it was ready; nobody reads it, but it must have somewhere to go.
    _words: BufReader<PipeReader>,
}

impl Site {
    /// Every kind there is.
    pub(crate) const ALL: [Self; 7] = [
        Self { nat: Nat::Open, wall: false },
        Self { nat: Nat::Open, wall: true },
        Self { nat: Nat::Easy, wall: false },
        Self { nat: Nat::Easy, wall: true },
        Self { nat: Nat::Hard, wall: false },
        Self { nat: Nat::Hard, wall: true },
        Self { nat: Nat::Forward, wall: true },
    ];

    /// The UDP port that its host's node is to have; 0 is any.
    pub(crate) fn port(self) -> u16 {
        if self.nat == Nat::Forward { FORWARDED_PORT } else { 0 }
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nat = match self.nat {
            Nat::Open => "open",
            Nat::Easy => "easy",
            Nat::Hard => "hard",
            Nat::Forward => "forward",
        };
        f.pad(&format!("{nat}{}", if self.wall { "+wall" } else { "" }))
    }
}

impl FromStr for Site {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|site| site.to_string() == text);
        found.ok_or_else(|| format!("{text:?} is no kind of site"))
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Left => "left",
            Self::Right => "right",
        })
    }
}

impl Sites {
    /// What this machine lacks for it; empty is nothing.
    pub(crate) fn lacking() -> Vec<String> {
        let path = search_path();
        let is_there = |program: &&str| path.split(':').any(|folder| Path::new(folder).join(program).is_file());
        let mut lacking: Vec<String> = PROGRAMS
            .iter()
            .filter(|program| !is_there(program))
            .map(|program| format!("the program {program}"))
            .collect();
        if lacking.is_empty() {
            let mut tried = alone();
            let tried = tried.args(["nft", "list", "ruleset"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
            if !tried.is_ok_and(|status| status.success()) {
                lacking.push("a kernel that lets this user have network namespaces with nftables".to_owned());
            }
        }
        lacking
    }

    /// Makes them. The kernel takes them away with the thread that calls this.
    pub(crate) fn start(left: Site, right: Site) -> Result<Self, Box<dyn Error>> {
        let (reader, writer) = std::io::pipe()?;
        let keeper = alone()
            .args(["sh", "-c", SCRIPT, "sites.sh", "up", &left.to_string(), &right.to_string()])
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer)
            .spawn()?;
        // From here on it ends with this value.
        let mut sites = Self { keeper, _words: BufReader::new(reader) };
        let mut line = String::new();
        sites._words.read_line(&mut line)?;
        if line.trim() != "ready" {
            sites._words.read_to_string(&mut line)?;
            return Err(format!("the sites {left} and {right} can't be made: {line}").into());
        }
        Ok(sites)
    }

    /// The words that start a command in a place, to be followed by its own.
    pub(crate) fn entrance(&self, place: Place) -> Vec<String> {
        let namespace = match place {
            Place::Internet => "internet".to_owned(),
            Place::Host(side) => side.to_string(),
        };
        [self.inside(), ["nsenter".to_owned(), format!("--net=/run/netns/{namespace}"), "--".to_owned()].to_vec()]
            .concat()
    }

    /// A program to be run in a place.
    pub(crate) fn command(&self, place: Place, program: &Path) -> Command {
        let mut command = words(&self.entrance(place));
        command.arg(program);
        command
    }

    /// The router of a side forgets whom it translated and let through, as one that was restarted.
    pub(crate) fn flush(&self, side: Side) -> Result<(), Box<dyn Error>> {
        self.order(&["flush", &side.to_string()])
    }

    /// A side gets another public address: its router, or, without NAT, its host.
    pub(crate) fn change_address(&self, side: Side) -> Result<(), Box<dyn Error>> {
        self.order(&["move", &side.to_string()])
    }

    /// From now on no UDP passes between the sites.
    pub(crate) fn part(&self) -> Result<(), Box<dyn Error>> {
        self.order(&["part"])
    }

    /// Takes back [`Self::part`].
    pub(crate) fn join(&self) -> Result<(), Box<dyn Error>> {
        self.order(&["join"])
    }

    fn order(&self, order: &[&str]) -> Result<(), Box<dyn Error>> {
        let mut command = words(&self.inside());
        let output = command.args(["sh", "-c", SCRIPT, "sites.sh"]).args(order).stdin(Stdio::null()).output()?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!("sites.sh {}: {}", order.join(" "), String::from_utf8_lossy(&output.stderr)).into())
    }

    fn inside(&self) -> Vec<String> {
        let id = self.keeper.id();
        let words =
            ["nsenter", &format!("--target={id}"), "--user", "--preserve-credentials", "--mount"].map(str::to_owned);
        // The keeper itself isn't in the process namespace that it made for its child.
        [words.to_vec(), vec![format!("--pid=/proc/{id}/ns/pid_for_children"), "--".to_owned()]].concat()
    }
}

impl Drop for Sites {
    fn drop(&mut self) {
        // `unshare` kills the first process of the namespaces, and that is the end of all the others.
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

/// A command whose words are to follow, alone in namespaces in which it is root.
fn alone() -> Command {
    let mut command = Command::new("setpriv");
    command.args([
        "--pdeathsig",
        "KILL",
        "unshare",
        "--user",
        "--map-root-user",
        "--net",
        "--mount",
        "--pid",
        "--fork",
    ]);
    command.args(["--kill-child", "--mount-proc"]).env("PATH", search_path());
    command
}

fn search_path() -> String {
    let own = std::env::var("PATH").unwrap_or_else(|_| "/usr/bin:/bin".to_owned());
    format!("{own}:{SYSTEM_FOLDERS}")
}

fn words(words: &[String]) -> Command {
    let mut command = Command::new(words.first().map_or("true", String::as_str));
    command.args(words.get(1..).unwrap_or_default()).env("PATH", search_path());
    command
}
