//! One pair of sites, and one kind of node on both: the first packet goes from left to right, and more follow.

use std::error::Error;
use std::fmt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::Programs;
use super::node::{Control, Node, Who};
use super::sites::{Side, Site, Sites};

/// How often paths are looked at. Each look is a start of two programs.
const GLANCE: Duration = Duration::from_millis(20);
/// How long to rest between two packets for the peer.
const PAUSE: Duration = Duration::from_millis(200);

/// What came of it; `None` is never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outcome {
    /// From the first packet to the peer's first answer through the tunnel.
    pub(super) answer: Option<Duration>,
    /// From the first packet until both ends send directly.
    pub(super) direct: Option<Duration>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |time: Option<Duration>, never: &str| match time {
            None => never.to_owned(),
            Some(time) if time < Duration::from_secs(1) => format!("{} ms", time.as_millis()),
            Some(time) => format!("{:.1} s", time.as_secs_f64()),
        };
        write!(f, "{} | {}", shown(self.answer, "none"), shown(self.direct, "no"))
    }
}

/// Sends packets through the tunnel until both ends send them directly, or `wait` is over.
pub(super) fn measure(
    programs: &Programs,
    who: Who,
    left: Site,
    right: Site,
    wait: Duration,
) -> Result<Outcome, Box<dyn Error>> {
    let sites = Sites::start(left, right)?;
    let control = Control::start(programs, &sites)?;
    let start = |side, site: Site| Node::start(programs, who, &sites, side, site.port(), &control);
    let (left, right) = (start(Side::Left, left)?, start(Side::Right, right)?);
    let address = right.address()?;
    left.wait_for_peer()?;
    right.wait_for_peer()?;

    let begun = Instant::now();
    let mut outcome = Outcome { answer: None, direct: None };
    let mut ping = Ping::start(left.ping_through_tunnel(&address))?;
    while begun.elapsed() < wait && (outcome.answer.is_none() || outcome.direct.is_none()) {
        if ping.poll()? && outcome.answer.is_none() {
            outcome.answer = Some(begun.elapsed());
        }
        if left.is_direct()? && right.is_direct()? {
            outcome.direct.get_or_insert_with(|| begun.elapsed());
        }
        thread::sleep(GLANCE);
    }
    drop(ping);
    // Its own word for it, too.
    if outcome.direct.is_some() && !left.pings_directly(&address)? {
        return Err(format!("{who:?} says that it sends directly, but its pings don't go that way").into());
    }
    Ok(outcome)
}

/// Packets through the tunnel, one after the other. Dropped, it ends.
struct Ping {
    command: Command,
    running: Option<Child>,
    rested: Instant,
}

impl Ping {
    fn start(mut command: Command) -> Result<Self, Box<dyn Error>> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let running = Some(command.spawn()?);
        Ok(Self { command, running, rested: Instant::now() })
    }

    /// Whether one was answered just now.
    fn poll(&mut self) -> Result<bool, Box<dyn Error>> {
        let Some(running) = &mut self.running else {
            if self.rested.elapsed() >= PAUSE {
                self.running = Some(self.command.spawn()?);
            }
            return Ok(false);
        };
        let Some(status) = running.try_wait()? else { return Ok(false) };
        self.running = None;
        self.rested = Instant::now();
        Ok(status.success())
    }
}

impl Drop for Ping {
    fn drop(&mut self) {
        if let Some(running) = &mut self.running {
            let _ = running.kill();
            let _ = running.wait();
        }
    }
}
