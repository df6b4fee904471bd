//! How long a start takes: from the start of the process to a netmap and a home relay, ours beside tsnet's with the same
//! control server, stage by stage, and how many round trips that is.

pub(crate) mod control;
mod starts;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::link::Conditions;
use crate::nix::figures::Spread;
use crate::stage::network::{Link, RIGHT};
use crate::stage::{self, Machine, Who};
use control::Control;
use starts::Starts;

/// Enough for a median.
const ROUNDS: u8 = 5;
/// There on the long path, or back.
const DELAY: Duration = Duration::from_millis(20);
/// The place whose delay counts round trips.
const FAR: &str = "devnet, 40 ms path";
/// The place that shows what many peers cost.
const CROWDED: &str = "devnet, 10,000 peers";
/// How many those are.
const CROWD: usize = 10_000;
/// How many times as fast as tsnet a start is to be, where control answers at once.
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

/// Where starts are measured.
struct Place {
    name: &'static str,
    /// In the order of who is started.
    starts: Vec<Starts>,
}

fn measure(args: &Args) -> Result<(), Box<dyn Error>> {
    let own = std::env::current_exe()?;
    let nixtail = args.nixtail.clone().unwrap_or_else(|| own.with_file_name("nixtail"));
    let peers = args.peers.clone().unwrap_or_else(|| PathBuf::from(".cache/peers"));
    let busybox = stage::find("busybox").ok_or("busybox isn't on PATH")?;
    let peer = |name: &str| Some(peers.join(name)).filter(|path| path.is_file());
    let (tsnet, headscale) = (peer("tsnet-peer"), peer("headscale").zip(peer("derper")));
    let mut programs: Vec<(&str, &Path)> = vec![("nixtail", &nixtail), ("busybox", &busybox)];
    let mut who = vec![Who::Nixtail];
    match &tsnet {
        Some(tsnet) => {
            programs.push(("tsnet-peer", tsnet));
            who.push(Who::Tsnet);
        }
        None => eprintln!("left out: tsnet; {} has no tsnet-peer (scripts/peers builds it)", peers.display()),
    }
    match &headscale {
        Some((headscale, derper)) => programs.extend([("headscale", headscale.as_path()), ("derper", derper)]),
        None => eprintln!("left out: headscale; {} lacks it or derper (scripts/peers builds them)", peers.display()),
    }
    let folder = stage::set(&programs)?;
    let machines = [&Machine::start(&folder, "node")?, &Machine::start(&folder, "control")?];
    let [node, server] = machines;

    let mut places = Vec::new();
    let mut round_trips = Vec::new();
    let devnets = [("devnet", Duration::ZERO, 0), (FAR, DELAY, 0), (CROWDED, Duration::ZERO, CROWD)];
    for (name, delay, crowd) in devnets {
        let _link = Link::emulated(machines, Conditions { delay, ..Conditions::CLEAN })?;
        round_trips.push(round_trip(node)?);
        let control = Control::devnet(&folder.join("bin"), stage::place::Place::Machine(server), RIGHT, crowd)?;
        places.push(Place { name, starts: starts::measure(&folder, node, &control, &who, args.rounds)? });
    }
    if headscale.is_some() {
        let _link = Link::emulated(machines, Conditions::CLEAN)?;
        let control = Control::headscale(&folder, server, RIGHT)?;
        places.push(Place { name: "headscale", starts: starts::measure(&folder, node, &control, &who, args.rounds)? });
    }
    let &[near, far, ..] = round_trips.as_slice() else { return Err("two links were to be measured".into()) };
    print_totals(&who, &places, far - near)?;
    print_stages(&who, &places);
    Ok(())
}

/// What a round trip on the link takes, in seconds: the emulator adds a little to the delay it is told.
fn round_trip(node: &Machine) -> Result<f64, Box<dyn Error>> {
    let said = node.run("busybox", &["ping", "-c", "5", "-i", "0.2", RIGHT])?;
    let average = said.split_once("min/avg/max = ").and_then(|(_, rest)| rest.split('/').nth(1)?.parse::<f64>().ok());
    Ok(average.ok_or_else(|| format!("ping says no round trip: {said}"))? / 1e3)
}

fn print_totals(who: &[Who], places: &[Place], round_trip: f64) -> Result<(), Box<dyn Error>> {
    println!("From the start of the process to a netmap and a home relay:");
    let names: String = who.iter().map(|who| format!("{:>26}", who.name())).collect();
    println!("{:<22}{names}{:>16}", "", "times as fast");
    for Place { name, starts } in places {
        let mut line = format!("{name:<22}");
        for start in starts {
            line.push_str(&format!("{:>26}", shown(start.total.spread().ok_or("nothing was measured")?)));
        }
        let speed = starts.first().zip(starts.get(1)).and_then(|(own, other)| own.total.speed_against(&other.total));
        println!("{line}{:>16}", speed.map(|speed| format!("{:.1}", speed.median)).unwrap_or_default());
    }
    let [near, far, ..] = places else { return Err("two links were to be measured".into()) };
    let median = |start: &Starts| start.total.spread().map_or(f64::NAN, |spread| spread.median);
    let trips = near.starts.iter().zip(&far.starts);
    let trips = trips.map(|(near, far)| (median(far) - median(near)) / round_trip);
    let trips: String = trips.map(|trips| format!("{trips:>26.1}")).collect();
    println!("{:<22}{trips}   (of {:.1} ms)", "round trips", round_trip * 1e3);
    for Place { name, starts } in places {
        let memory: String =
            starts.iter().map(|start| format!("{:>26}", format!("{:.0} MiB", start.memory()))).collect();
        println!("{:<22}{memory}", format!("memory, {}", name.trim_start_matches("devnet, ")));
    }
    println!(
        "To be reached: {TARGET_SPEED} times as fast, {TARGET_ROUND_TRIPS} round trips. tsnet says when its home is chosen,"
    );
    println!("nixtail when the relay there has taken it; headscale's own answers are in both times.");
    Ok(())
}

fn print_stages(who: &[Who], places: &[Place]) {
    let names: String = places.iter().map(|place| format!("{:>22}", place.name)).collect();
    println!("\nStages: milliseconds since its start, by its own clock, medians\n{:<22}{names}", "");
    for (at, who) in who.iter().enumerate() {
        let starts: Vec<&Starts> = places.iter().filter_map(|place| place.starts.get(at)).collect();
        for stage in starts.first().map(|first| first.stages()).unwrap_or_default() {
            let medians = starts.iter().map(|start| start.median(stage));
            let medians: String = medians
                .map(|ms| format!("{:>22}", ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.0}"))))
                .collect();
            println!("{:<22}{medians}", format!("{} {stage}", who.name()));
        }
    }
}

fn shown(spread: Spread) -> String {
    let [median, least, most] = [spread.median, spread.least, spread.most].map(|seconds| seconds * 1e3);
    format!("{median:.0} ms ({least:.0}–{most:.0})")
}
