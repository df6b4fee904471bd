//! nixtail beside its peers: what streams move and cost, how long answers take, on links of several kinds, in the same
//! namespaces and in the same run, and whether that is what was to be reached.

mod cost;
mod end;
mod figures;
pub(crate) mod load;
mod loopback;
mod measure;
mod plan;
mod plot;
mod programs;
mod report;
mod rounds;
mod site;
mod ssh_tunnel;
mod targets;
mod wireguard;

use std::error::Error;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use figures::Figures;
use plan::{LINKS, LinkPlan};
use programs::Programs;
use report::Report;
use rounds::{Selection, note, say};
use site::{Setting, Site};

use crate::nix::variable;
use crate::stage::network::{CONTROL, Link, join_control_at};
use crate::stage::place::Place;
use crate::stage::{self, Machine, host};
use crate::start::control::Control;

/// Enough for a median, and for a spread around it.
const ROUNDS: u8 = 5;
/// A quick run's.
const QUICK_ROUNDS: u8 = 1;
/// By what a quick run's lengths are divided.
const SHORTENED: u32 = 10;

/// Measure nixtail's tunnel beside tsnet, tailscaled, wireguard-go, OpenSSH and no tunnel at all. As root on six links, in
/// namespaces, in under 20 minutes; else what loopback allows.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Args {
    /// How often each is measured [default: 5].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=50))]
    rounds: Option<u8>,
    /// One short round, to see that all of it works: the figures mean nothing.
    #[arg(long)]
    quick: bool,
    /// Only what holds this in LINK/MEASURE/PEER, such as `clean/`, `one/nixtail` or `/tsnet`; the JSON and the progress have
    /// the keys.
    #[arg(long, value_name = "PART")]
    only: Option<String>,
    /// Write all figures as JSON, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the picture, too.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// The kernel's congestion control within the machines, such as cubic [default: this machine's].
    #[arg(long, value_name = "NAME")]
    congestion: Option<String>,
    /// The nixtail whose size is judged, and which is control [default: the one beside this program].
    #[arg(long, value_name = "PATH")]
    nixtail: Option<PathBuf>,
    /// The folder with tailscaled, tailscale, tsnet-peer, headscale and derper [default: what scripts/peers built].
    #[arg(long, env = "NIXTAIL_PEERS", value_name = "FOLDER")]
    peers: Option<PathBuf>,
    /// More for the environment of nixtail's nodes: to see what a setting costs.
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Do without root, even as root.
    #[arg(long)]
    loopback: bool,
    /// The process within the namespaces itself.
    #[arg(long, hide = true)]
    inside: bool,
}

impl Args {
    /// The usual run, which leaves its figures and their picture in a folder, made where it isn't there.
    pub(crate) fn writing_to(folder: PathBuf) -> Result<Self, String> {
        fs::create_dir_all(&folder).map_err(|error| format!("{} can't be made: {error}", folder.display()))?;
        let [json, svg] = ["compare.json", "compare.svg"].map(|name| Some(folder.join(name)));
        Ok(Self { json, svg, ..Self::default() })
    }

    /// The command line for the process within.
    fn again(&self) -> Vec<String> {
        let mut line = vec!["compare".to_owned(), "--inside".to_owned()];
        line.extend(self.quick.then(|| "--quick".to_owned()));
        line.extend(self.rounds.map(|rounds| format!("--rounds={rounds}")));
        line.extend(self.only.iter().map(|part| format!("--only={part}")));
        line.extend(self.congestion.iter().map(|name| format!("--congestion={name}")));
        line.extend(self.env.iter().map(|(name, value)| format!("--env={name}={value}")));
        let paths = [("json", &self.json), ("svg", &self.svg), ("nixtail", &self.nixtail), ("peers", &self.peers)];
        let paths = paths.into_iter().filter_map(|(flag, path)| Some((flag, path.as_ref()?)));
        line.extend(paths.map(|(flag, path)| format!("--{flag}={}", path.display())));
        line
    }

    fn rounds(&self) -> u8 {
        self.rounds.unwrap_or(if self.quick { QUICK_ROUNDS } else { ROUNDS })
    }

    fn selection(&self) -> Selection {
        let shortened = if self.quick { SHORTENED } else { 1 };
        Selection { rounds: self.rounds(), only: self.only.clone(), shortened, without: Vec::new() }
    }
}

/// Measures what this machine allows, and says what it left out.
pub(crate) fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    if args.inside {
        return in_namespaces(args);
    }
    let lacking = stage::lacking_for_network();
    if args.loopback || !lacking.is_empty() {
        return loopback::run(args, &lacking);
    }
    let status = stage::enter(&args.again())?;
    if status.success() { Ok(()) } else { Err(format!("the measurements ended with {status}").into()) }
}

/// What a run has found.
#[derive(Debug, Default)]
struct Found {
    figures: Figures,
    left_out: Vec<String>,
    failed: Vec<String>,
    packets: Vec<String>,
}

fn in_namespaces(args: &Args) -> Result<(), Box<dyn Error>> {
    let mut found = Found::default();
    let mut selection = args.selection();
    let programs = Programs::find(args)?;
    selection.without = programs.lacking(&mut found.left_out);
    let list = programs.list();
    let list: Vec<(&str, &Path)> = list.iter().map(|(name, path)| (*name, path.as_path())).collect();
    let folder = stage::set(&list)?;
    let server = Machine::start(&folder, "control")?;
    let (left, right) = (Machine::start(&folder, "left")?, Machine::start(&folder, "right")?);
    join_control_at(Some(&server), [&left, &right])?;
    let mut settings = Vec::new();
    if let Some(name) = &args.congestion {
        for machine in [&left, &right] {
            let set = "echo \"$0\" >/proc/sys/net/ipv4/tcp_congestion_control";
            machine.run("sh", &["-c", set, name]).map_err(|error| format!("no congestion control {name}: {error}"))?;
        }
        settings.push(format!("within the machines TCP {name}"));
    }
    settings.extend(args.env.iter().map(|(name, value)| format!("nixtail with {name}={value}")));
    for link in &LINKS {
        if selection.peers(link).is_empty() {
            continue;
        }
        if let Err(error) = on_link(args, link, &folder, &server, [&left, &right], &selection, &mut found) {
            note(&mut found.failed, link, &*error);
        }
    }
    finish(args, &LINKS, &found, settings, &programs.nixtail)
}

/// Everything that is measured on one link, with nodes that start and end with it.
fn on_link(
    args: &Args,
    plan: &LinkPlan,
    folder: &Path,
    server: &Machine,
    machines: [&Machine; 2],
    selection: &Selection,
    found: &mut Found,
) -> Result<(), Box<dyn Error>> {
    let link = match plan.conditions {
        None => Link::veth(machines)?,
        Some(conditions) => Link::emulated(machines, conditions)?,
    };
    let programs = folder.join("bin");
    let control = if plan.relayed {
        Control::headscale(folder, server, CONTROL)?
    } else {
        Control::devnet(&programs, Place::Machine(server), CONTROL, 0)?
    };
    let places = machines.map(Place::Machine);
    let (environment, relayed) = (args.env.as_slice(), plan.relayed);
    let site = Site::new(Setting { programs: &programs, places, control: &control, relayed, environment });
    rounds::run(plan, selection, &site, &link, &mut found.figures, &mut found.failed);
    if let Some(counts) = link.counts() {
        let [there, back] = counts.map(|counts| {
            format!(
                "{} passed, {} lost, {} late, {} found the queue full",
                counts.passed, counts.lost, counts.late, counts.overflowed
            )
        });
        found.packets.push(format!("{}: there {there}; back {back}", plan.title));
    }
    say(&format!("{}: all end", plan.key));
    Ok(())
}

/// Judges, prints, and writes what is to be written; `settings` is what of this run isn't as usual.
fn finish(
    args: &Args,
    links: &[LinkPlan],
    found: &Found,
    settings: Vec<String>,
    nixtail: &Path,
) -> Result<(), Box<dyn Error>> {
    let machine = [host::described(), settings].concat();
    // One that was built with this one, for debugging, is no release.
    let size = fs::metadata(nixtail).map(|metadata| metadata.len()).ok().filter(|_| !cfg!(debug_assertions));
    let verdicts = targets::verdicts(&found.figures, size);
    let Found { figures, left_out, failed, packets } = found;
    let (rounds, quick) = (args.rounds(), args.quick);
    let subtitle = format!("{}; medians of {rounds} rounds, least to most", machine.join("; "));
    let report = Report { links, figures, verdicts: &verdicts, machine, rounds, quick, left_out, failed, packets };
    if let Some(file) = &args.json {
        write(file, &format!("{:#}\n", report.json()))?;
        say(&format!("all figures are in {}", file.display()));
    }
    if let Some(file) = &args.svg {
        write(file, &plot::svg(links, figures, &subtitle))?;
        say(&format!("their picture is {}", file.display()));
    }
    std::io::stdout().lock().write_all(report.markdown().as_bytes())?;
    // A peer that fails once is told of; ours is what this is about.
    match failed.iter().find(|line| line.contains("nixtail")) {
        None => Ok(()),
        Some(line) => Err(format!("nixtail could not be measured: {line}").into()),
    }
}

fn write(file: &Path, text: &str) -> Result<(), Box<dyn Error>> {
    fs::write(file, text).map_err(|error| format!("{} can't be written: {error}", file.display()).into())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(subcommand)]
        command: Command,
    }

    #[derive(clap::Subcommand)]
    enum Command {
        Compare(Args),
    }

    #[test]
    fn the_process_within_is_told_all_that_counts() {
        let words = "nixtail-bench compare --rounds 7 --quick --only clean/ --json a.json --svg b.svg --congestion cubic \
                     --nixtail n --peers p --env NIXTAIL_GSO=0";
        let Command::Compare(args) = Line::parse_from(words.split_whitespace()).command;
        let again = [vec!["nixtail-bench".to_owned()], args.again()].concat();
        let Command::Compare(again) = Line::parse_from(again).command;
        assert!(again.inside && !args.inside);
        assert_eq!(format!("{:?}", Args { inside: false, ..again }), format!("{args:?}"));
        assert_eq!((args.rounds(), Args::default().rounds()), (7, ROUNDS));
    }
}
