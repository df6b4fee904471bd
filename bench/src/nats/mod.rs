//! Who reaches whom directly through which NATs, and after how long: ours beside tailscaled's on the same pair of sites.

mod node;
mod pair;
#[path = "../../../tests/lab/sites.rs"]
#[allow(dead_code, reason = "shared with tests/nats.rs, which also upsets the routers")]
mod sites;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use node::Who;
use pair::Outcome;
use sites::{Site, Sites};

/// How long a direct path is waited for: several times what any pair takes.
const WAIT: u64 = 15;
/// How often a pair is tried that was direct for tailscaled and not for us: for some, which of two packets is first decides.
const TRIES: u8 = 3;

/// Measure through which NATs peers meet directly, beside tailscaled in userspace. A few minutes.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Only pairs with this kind of site, or one pair (`easy+wall hard`).
    #[arg(value_name = "SITE", num_args = 0..=2)]
    sites: Vec<Site>,
    /// How many seconds to wait for a direct path.
    #[arg(long, value_name = "SECONDS", default_value_t = WAIT, value_parser = clap::value_parser!(u64).range(1..=120))]
    wait: u64,
    /// How many pairs to measure at once.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    at_once: u8,
    /// The nixtail to measure [default: the one beside this program].
    #[arg(long, value_name = "PATH")]
    nixtail: Option<PathBuf>,
    /// The folder with tailscaled and tailscale [default: what scripts/peers built].
    #[arg(long, env = "NIXTAIL_PEERS", value_name = "FOLDER")]
    peers: Option<PathBuf>,
}

impl Default for Args {
    fn default() -> Self {
        let peers = std::env::var_os("NIXTAIL_PEERS").map(PathBuf::from);
        Self { sites: Vec::new(), wait: WAIT, at_once: 2, nixtail: None, peers }
    }
}

/// The programs that are measured.
#[derive(Debug)]
struct Programs {
    nixtail: PathBuf,
    /// tailscaled and tailscale.
    tailscale: Option<[PathBuf; 2]>,
}

/// What came of one pair.
#[derive(Debug)]
struct Row {
    left: Site,
    right: Site,
    ours: Outcome,
    /// Which try of ours that was.
    tries: u8,
    theirs: Option<Outcome>,
}

/// Measures, or says what this machine lacks for it.
///
/// # Errors
/// Where tailscaled finds a direct path and we don't, and what went wrong.
pub(crate) fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let lacking = Sites::lacking();
    if !lacking.is_empty() {
        eprintln!("left out: who meets directly through NATs; it needs {}", lacking.join(", "));
        return Ok(());
    }
    let programs = Programs::find(args)?;
    let pairs = pairs(&args.sites);
    let rows = measure(&programs, &pairs, Duration::from_secs(args.wait), args.at_once)?;
    print(&rows, args.wait);
    let worse: Vec<String> =
        rows.iter().filter(|row| row.is_worse()).map(|row| format!("{} and {}", row.left, row.right)).collect();
    if worse.is_empty() {
        Ok(())
    } else {
        Err(format!("tailscaled is direct and we aren't: {}", worse.join("; ")).into())
    }
}

impl Programs {
    fn find(args: &Args) -> Result<Self, Box<dyn Error>> {
        let own = std::env::current_exe()?;
        let nixtail = args.nixtail.clone().unwrap_or_else(|| own.with_file_name("nixtail"));
        let nixtail = nixtail.canonicalize().map_err(|error| format!("{}: {error}", nixtail.display()))?;
        let folder = args.peers.clone().unwrap_or_else(|| PathBuf::from(".cache/peers"));
        let peer = |name: &str| folder.join(name).canonicalize().ok();
        let tailscale = peer("tailscaled").zip(peer("tailscale")).map(Into::into);
        if tailscale.is_none() {
            eprintln!("left out: tailscaled; {} doesn't have it (scripts/peers builds it)", folder.display());
        }
        Ok(Self { nixtail, tailscale })
    }

    fn nixtail(&self) -> &Path {
        &self.nixtail
    }
}

/// All pairs, each once, of which one side is `wanted`; or the one that is.
fn pairs(wanted: &[Site]) -> Vec<(Site, Site)> {
    if let &[left, right] = wanted {
        return vec![(left, right)];
    }
    let all = Site::ALL.into_iter().enumerate();
    let all = all.flat_map(|(at, left)| Site::ALL.into_iter().skip(at).map(move |right| (left, right)));
    all.filter(|(left, right)| wanted.iter().all(|wanted| wanted == left || wanted == right)).collect()
}

fn measure(
    programs: &Programs,
    pairs: &[(Site, Site)],
    wait: Duration,
    at_once: u8,
) -> Result<Vec<Row>, Box<dyn Error>> {
    let next = AtomicUsize::new(0);
    let rows: Mutex<Vec<(usize, Result<Row, String>)>> = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some((left, right)) = pairs.get(at).copied() else { return };
                    let row = row(programs, left, right, wait);
                    let row = row.map_err(|error| format!("{left} and {right}: {error}"));
                    eprintln!("{} of {}: {left} and {right}", at + 1, pairs.len());
                    rows.lock().unwrap_or_else(PoisonError::into_inner).push((at, row));
                }
            });
        }
    });
    let mut rows = rows.into_inner().unwrap_or_else(PoisonError::into_inner);
    rows.sort_by_key(|(at, _)| *at);
    let rows: Result<Vec<Row>, String> = rows.into_iter().map(|(_, row)| row).collect();
    Ok(rows?)
}

fn row(programs: &Programs, left: Site, right: Site, wait: Duration) -> Result<Row, Box<dyn Error>> {
    let ours = pair::measure(programs, Who::Nixtail, left, right, wait)?;
    let theirs = match programs.tailscale {
        Some(_) => Some(pair::measure(programs, Who::Tailscaled, left, right, wait)?),
        None => None,
    };
    let mut row = Row { left, right, ours, tries: 1, theirs };
    while row.is_worse() && row.tries < TRIES {
        row.ours = pair::measure(programs, Who::Nixtail, left, right, wait)?;
        row.tries += 1;
    }
    Ok(row)
}

impl Row {
    fn is_worse(&self) -> bool {
        self.ours.direct.is_none() && self.theirs.is_some_and(|theirs| theirs.direct.is_some())
    }
}

fn print(rows: &[Row], wait: u64) {
    println!(
        "From the first packet for the peer: until it answers, and until both ends send directly (waited for {wait} s)"
    );
    println!("| left | right | nixtail: answer | direct | tailscaled: answer | direct |");
    println!("|---|---|---|---|---|---|");
    for Row { left, right, ours, tries, theirs } in rows {
        let theirs = theirs.map_or_else(|| "not measured | not measured".to_owned(), |theirs| theirs.to_string());
        let again = if *tries > 1 { format!(" (try {tries})") } else { String::new() };
        println!("| {left} | {right} | {ours}{again} | {theirs} |");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pair_comes_once() {
        let all = pairs(&[]);
        assert_eq!(all.len(), 28);
        let easy: Site = "easy+wall".parse().unwrap();
        assert_eq!(pairs(&[easy]).len(), 7);
        let hard = "hard".parse().unwrap();
        assert_eq!(pairs(&[hard, easy]), [(hard, easy)]);
        assert!("easy+walls".parse::<Site>().is_err());
    }

    #[test]
    fn only_a_path_that_tailscaled_has_and_we_lack_is_a_failure() {
        let outcome = |direct: Option<u64>| Outcome { answer: None, direct: direct.map(Duration::from_millis) };
        let [site, ..] = Site::ALL;
        let row = |ours, theirs| Row { left: site, right: site, ours: outcome(ours), tries: 1, theirs };
        assert!(row(None, Some(outcome(Some(9)))).is_worse());
        assert!(!row(None, Some(outcome(None))).is_worse());
        assert!(!row(Some(10), Some(outcome(Some(9)))).is_worse());
        assert!(!row(None, None).is_worse());
    }
}
