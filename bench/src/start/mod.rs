//! How long a start takes: from the start of the process to a netmap and a home relay, ours beside tsnet's with the same
//! control server, and how many round trips that is.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::link::Conditions;
use crate::nix::figures::{Samples, Spread};
use crate::stage::network::{Link, RIGHT};
use crate::stage::process::Running;
use crate::stage::{self, Machine};

/// Enough for a median.
const ROUNDS: u8 = 5;
/// How long a start may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// There and back on the long path.
const ROUND_TRIP: Duration = Duration::from_millis(40);
/// How many times as fast as tsnet a start is to be, without delay.
const TARGET_SPEED: f64 = 5.0;
/// How many round trips it may have.
const TARGET_ROUND_TRIPS: f64 = 8.0;

/// Measure how long a start takes, beside tsnet, with and without delay. Needs root.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// How often each is started.
    #[arg(long, value_name = "N", default_value_t = ROUNDS, value_parser = clap::value_parser!(u8).range(1..=50))]
    rounds: u8,
    /// The nixtail to measure [default: the one beside this program].
    #[arg(long, value_name = "PATH")]
    nixtail: Option<PathBuf>,
    /// The folder with tsnet-peer [default: what scripts/peers built].
    #[arg(long, env = "NIXTAIL_PEERS", value_name = "FOLDER")]
    peers: Option<PathBuf>,
    /// The process within the namespaces itself.
    #[arg(long, hide = true)]
    inside: bool,
}

impl Default for Args {
    fn default() -> Self {
        let peers = std::env::var_os("NIXTAIL_PEERS").map(PathBuf::from);
        Self { rounds: ROUNDS, nixtail: None, peers, inside: false }
    }
}

/// Who is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Nixtail,
    Tsnet,
}

/// Measures, or says what this machine lacks for it.
pub(crate) fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    if args.inside {
        return measure(args);
    }
    let lacking = stage::lacking();
    if !lacking.is_empty() {
        eprintln!("left out: how long a start takes; it needs {}", lacking.join(", "));
        return Ok(());
    }
    let mut again = vec!["start".to_owned(), "--inside".to_owned(), format!("--rounds={}", args.rounds)];
    again.extend(args.nixtail.iter().map(|path| format!("--nixtail={}", path.display())));
    again.extend(args.peers.iter().map(|path| format!("--peers={}", path.display())));
    let status = stage::enter(&again)?;
    if status.success() { Ok(()) } else { Err(format!("the measurements ended with {status}").into()) }
}

fn measure(args: &Args) -> Result<(), Box<dyn Error>> {
    let own = std::env::current_exe()?;
    let nixtail = args.nixtail.clone().unwrap_or_else(|| own.with_file_name("nixtail"));
    let tsnet = args.peers.clone().unwrap_or_else(|| PathBuf::from(".cache/peers")).join("tsnet-peer");
    let mut programs: Vec<(&str, &Path)> = vec![("nixtail", &nixtail)];
    let mut who = vec![Who::Nixtail];
    if tsnet.is_file() {
        programs.push(("tsnet-peer", &tsnet));
        who.push(Who::Tsnet);
    } else {
        eprintln!("left out: tsnet; {} isn't there (scripts/peers builds it)", tsnet.display());
    }
    let busybox = stage::find("busybox").ok_or("busybox isn't on PATH")?;
    programs.push(("busybox", &busybox));
    let folder = stage::set(&programs)?;
    let machines = [&Machine::start(&folder, "node")?, &Machine::start(&folder, "control")?];

    let mut taken = Vec::new();
    for delay in [Duration::ZERO, ROUND_TRIP / 2] {
        let _link = Link::emulated(machines, Conditions { delay, ..Conditions::CLEAN })?;
        taken.push(starts(&folder, machines, &who, args.rounds)?);
    }
    let [near, far] = taken.as_slice() else { return Err("two links were to be measured".into()) };
    println!("From the start of the process to a netmap and a home relay; control and relay are nixtail's devnet.");
    println!("{:<10} {:>24} {:>24} {:>12}", "", "no delay", "40 ms round trip", "round trips");
    for (who, (near, far)) in who.iter().zip(near.iter().zip(far)) {
        let (near, far) = near.spread().zip(far.spread()).ok_or("nothing was measured")?;
        let trips = (far.median - near.median) / ROUND_TRIP.as_secs_f64();
        println!("{:<10} {:>24} {:>24} {trips:>12.1}", format!("{who:?}"), shown(near), shown(far));
    }
    let speed = |samples: &[Samples]| samples.first()?.speed_against(samples.get(1)?);
    if let Some((near, far)) = speed(near).zip(speed(far)) {
        println!("{:.1} times as fast as tsnet without delay, {:.1} times with it.", near.median, far.median);
    }
    println!("To be reached: {TARGET_SPEED} times as fast, {TARGET_ROUND_TRIPS} round trips.");
    Ok(())
}

/// Starts each of them in turns.
fn starts(
    folder: &Path,
    [node, control]: [&Machine; 2],
    who: &[Who],
    rounds: u8,
) -> Result<Vec<Samples>, Box<dyn Error>> {
    let program = |name: &str| folder.join("bin").join(name).display().to_string();
    let serve = control.command(&program("nixtail"), &["devnet", "--listen", RIGHT, "--force", "--allow-all"]);
    let mut devnet = control.start_inside("devnet", serve)?;
    let ready = devnet.wait_until_ready(PATIENCE)?;
    let word = |name: &str| {
        let word = ready.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        word.ok_or_else(|| format!("the devnet's ready line has no {name}"))
    };
    let (url, key) = (word("TS_CONTROL_URL")?, word("TS_AUTHKEY")?);
    let mut samples = vec![Samples::default(); who.len()];
    for round in 0..rounds {
        for (who, samples) in who.iter().zip(&mut samples) {
            let name = format!("{who:?}-{round}").to_ascii_lowercase();
            let socket = node.path("start.sock").display().to_string();
            let (mut command, is_up): (_, fn(&str) -> bool) = match who {
                Who::Nixtail => {
                    let line = ["-v", "up", "--login-server", url, "--hostname", &name, "--socket", &socket];
                    let is_up = |log: &str| log.contains("stage=first netmap") && log.contains("stage=home relay");
                    (node.command(&program("nixtail"), &line), is_up)
                }
                // It says so once a relay is chosen, connected or not.
                Who::Tsnet => {
                    (node.command(&program("tsnet-peer"), &[url, &name, ""]), |log| log.contains(r#""step":"home""#))
                }
            };
            command.env("TS_AUTHKEY", key).env("TS_NO_LOGS_NO_SUPPORT", "true");
            let begun = Instant::now();
            let mut running: Running = node.start_inside(&name, command)?;
            running.wait_for("a netmap and a home relay", PATIENCE, |log| is_up(log).then_some(()))?;
            samples.add(begun.elapsed());
        }
    }
    Ok(samples)
}

fn shown(spread: Spread) -> String {
    let [median, least, most] = [spread.median, spread.least, spread.most].map(|seconds| seconds * 1e3);
    format!("{median:.0} ms ({least:.0}–{most:.0})")
}
