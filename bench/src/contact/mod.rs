//! First contact: how long it takes from a dial to the first byte back between two nodes that have just joined, ours beside
//! tsnet's, on headscale with Tailscale's own relay.
//!
//! A pair is cold: new keys on both sides, joined within a second of each other, nothing cached; chance says which one dials, and in
//! which machine it is. The machines share a link and a way to control, so that direct paths can be found.

mod figures;
pub(crate) mod node;
mod pair;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;

use crate::stage::network::{CONTROL, Link, join_control_at};
use crate::stage::{self, Machine, Who};
use crate::start::control::Control;
use figures::{Quantiles, Verdict};
use pair::{Contact, Login, Plan};

/// As many as a 99th of a hundred wants.
const PAIRS: u16 = 200;
/// headscale takes two seconds for each registration, and answers many at a time.
const AT_ONCE: u8 = 8;
/// The longest time between the starts of a pair's two nodes.
const APART: u64 = 1000;
/// Seconds.
const SLOW: f64 = 1.0;

/// Measure the first contact of pairs that have just joined headscale, beside tsnet's. Fails if ours are too slow. Needs root.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// How many pairs of each.
    #[arg(value_name = "PAIRS", default_value_t = PAIRS, value_parser = clap::value_parser!(u16).range(1..=5000))]
    pairs: u16,
    /// How many pairs at a time.
    #[arg(long, value_name = "N", default_value_t = AT_ONCE, value_parser = clap::value_parser!(u8).range(1..=64))]
    at_once: u8,
    /// What chance starts from.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// The folder with headscale, derper and tsnet-peer [default: what scripts/peers built].
    #[arg(long, env = "NIXTAIL_PEERS", value_name = "FOLDER")]
    peers: Option<PathBuf>,
    /// A contact that took longer is told by itself, and its logs are kept.
    #[arg(long, value_name = "SECONDS", default_value_t = SLOW)]
    slow: f64,
    /// Where to keep the logs of slow pairs [default: nowhere].
    #[arg(long, value_name = "FOLDER")]
    logs: Option<PathBuf>,
    /// The process within the namespaces itself.
    #[arg(long, hide = true)]
    inside: bool,
}

impl Default for Args {
    fn default() -> Self {
        let peers = std::env::var_os("NIXTAIL_PEERS").map(PathBuf::from);
        Self { pairs: PAIRS, at_once: AT_ONCE, seed: 1, peers, slow: SLOW, logs: None, inside: false }
    }
}

/// Measures, or says what this machine lacks for it.
pub(crate) fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    if args.inside {
        return measure(args);
    }
    let lacking = stage::lacking();
    if !lacking.is_empty() {
        eprintln!("left out: first contact; it needs {}", lacking.join(", "));
        return Ok(());
    }
    let mut again = vec!["contact".to_owned(), "--inside".to_owned(), args.pairs.to_string()];
    again.extend([
        format!("--at-once={}", args.at_once),
        format!("--seed={}", args.seed),
        format!("--slow={}", args.slow),
    ]);
    again.extend(args.peers.iter().map(|path| format!("--peers={}", path.display())));
    if let Some(logs) = &args.logs {
        std::fs::create_dir_all(logs)?;
        again.push(format!("--logs={}", logs.canonicalize()?.display()));
    }
    let status = stage::enter(&again)?;
    if status.success() { Ok(()) } else { Err(format!("first contact: it ended with {status}").into()) }
}

fn measure(args: &Args) -> Result<(), Box<dyn Error>> {
    let own = std::env::current_exe()?;
    let peers = args.peers.clone().unwrap_or_else(|| PathBuf::from(".cache/peers"));
    let peer = |name: &str| Some(peers.join(name)).filter(|path| path.is_file());
    let Some((headscale, derper)) = peer("headscale").zip(peer("derper")) else {
        eprintln!("left out: first contact; {} lacks headscale or derper (scripts/peers builds them)", peers.display());
        return Ok(());
    };
    let mut programs: Vec<(&str, &Path)> = vec![("node", &own), ("headscale", &headscale), ("derper", &derper)];
    let mut who = vec![Who::Nixtail];
    let tsnet = peer("tsnet-peer");
    match &tsnet {
        Some(tsnet) => {
            programs.push(("tsnet-peer", tsnet));
            who.push(Who::Tsnet);
        }
        None => eprintln!("left out: tsnet; {} has no tsnet-peer (scripts/peers builds it)", peers.display()),
    }
    let folder = stage::set(&programs)?;
    let server = Machine::start(&folder, "control")?;
    let (left, right) = (Machine::start(&folder, "left")?, Machine::start(&folder, "right")?);
    let machines = [&left, &right];
    join_control_at(Some(&server), machines)?;
    let _link = Link::veth(machines)?;
    let control = Control::headscale(&folder, &server, CONTROL)?;
    let logs = folder.join("logs");
    std::fs::create_dir(&logs)?;

    let begun = Instant::now();
    let plans = plans(args, &who);
    let next = Mutex::new(plans.iter());
    let results = Mutex::new(Vec::new());
    let login = Login { url: &control.url, key: &control.key };
    std::thread::scope(|scope| {
        for _ in 0..args.at_once {
            scope.spawn(|| {
                loop {
                    // The guard mustn't live as long as the pair does.
                    let plan = next.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some(plan) = plan else { return };
                    let met = pair::meet(plan, &folder, machines, &login, &logs).map_err(|error| error.to_string());
                    if met.as_ref().map_or(true, |contact| contact.answered > args.slow) {
                        tell_slow(plan, &met, &logs, args.logs.as_deref());
                    }
                    results.lock().unwrap_or_else(PoisonError::into_inner).push((*plan, met));
                }
            });
        }
    });
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    report(args, &who, &results, begun.elapsed())
}

/// What chance makes of each pair: the same for both, in turns.
fn plans(args: &Args, who: &[Who]) -> Vec<Plan> {
    let mut rng = StdRng::seed_from_u64(args.seed);
    let pairs = (0..usize::from(args.pairs)).map(|number| {
        let apart = Duration::from_millis(rng.random_range(0..APART));
        (number, apart, rng.random(), rng.random())
    });
    let of_each = |(number, apart, swapped, last_dials)| {
        who.iter().map(move |who| Plan { who: *who, number, apart, swapped, last_dials })
    };
    pairs.flat_map(of_each).collect()
}

fn tell_slow(plan: &Plan, met: &Result<Contact, String>, logs: &Path, keep: Option<&Path>) {
    let (who, number) = (plan.who.name(), plan.number);
    match met {
        Ok(contact) => eprintln!("slow: {who} {number}: {:.3} s, {contact:?}", contact.answered),
        Err(error) => eprintln!("failed: {who} {number}: {error}"),
    }
    for role in ["first", "last"] {
        let name = format!("{who}-{number}-{role}.log");
        if let Some(keep) = keep
            && let Err(error) = std::fs::copy(logs.join(&name), keep.join(&name))
        {
            eprintln!("{name} can't be kept: {error}");
        }
    }
}

/// A part of a contact, in seconds.
type Part = fn(&Contact) -> f64;

fn report(
    args: &Args,
    who: &[Who],
    results: &[(Plan, Result<Contact, String>)],
    taken: Duration,
) -> Result<(), Box<dyn Error>> {
    let of = |who: Who, part: Part| {
        let met = results.iter().filter(|(plan, _)| plan.who == who).filter_map(|(_, met)| met.as_ref().ok());
        Quantiles::of(met.map(part))
    };
    println!(
        "First contact on headscale: {} cold pairs of each, {} at a time, in {:.0} s. Milliseconds: median, p99, most.",
        args.pairs,
        args.at_once,
        taken.as_secs_f64()
    );
    let rows: [(&str, Part); 4] = [
        ("dial to first byte", |contact| contact.answered),
        ("dial to connection", |contact| contact.connected),
        ("ready to netmap", |contact| contact.seen),
        ("ready to first byte", |contact| contact.since_ready),
    ];
    let names: String = who.iter().map(|who| format!("{:>26}", who.name())).collect();
    println!("{:<22}{names}", "");
    let mut table = serde_json::Map::new();
    for (name, part) in rows {
        let all: Vec<_> = who.iter().map(|who| of(*who, part)).collect();
        let cells: String =
            all.iter().map(|one| format!("{:>26}", one.map_or("-".to_owned(), |one| one.shown()))).collect();
        println!("{name:<22}{cells}");
        let cells = who.iter().zip(&all).map(|(who, one)| (who.name().to_owned(), json!(one)));
        table.insert(name.replace(' ', "_"), cells.collect());
    }
    let failed = |who: Who| results.iter().filter(|(plan, met)| plan.who == who && met.is_err()).count();
    let failures: String = who.iter().map(|who| format!("{:>26}", failed(*who))).collect();
    println!("{:<22}{failures}", "failed");
    let contacts: Vec<_> = results.iter().filter_map(|(_, met)| met.as_ref().ok()).collect();
    println!(
        "{}",
        json!({ "schema": 1, "pairs": args.pairs, "at_once": args.at_once, "seconds": table, "contacts": contacts })
    );
    Verdict { quantiles: of(Who::Nixtail, |contact| contact.answered), failed: failed(Who::Nixtail) }.judge()
}
