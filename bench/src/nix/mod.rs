//! The Nix rows: the same work over plain sshd, over tailscaled, and over nixtail's two lanes, in turns.

pub(crate) mod figures;
mod lanes;
mod processor;
mod rows;
mod table;
mod workload;

use std::error::Error;
use std::path::{Path, PathBuf};

use figures::Samples;
use lanes::Lane;
use rows::Row;
use table::Report;
use workload::{Size, Workload};

use crate::link::Conditions;
use crate::stage::network::{self, Link};
use crate::stage::tailnet::{Tailnet, Transport};
use crate::stage::{self, Machine, sshd};

/// Enough for a median on a machine that does other things, too.
const ROUNDS: u8 = 5;

/// How far apart the machines are for the count of round trips, one way.
const FAR: std::time::Duration = std::time::Duration::from_millis(40);

/// Measure Nix over nixtail beside plain sshd and tailscaled, on two machines made of namespaces. Needs root.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// How often each row is measured; copies of 1 GiB three fifths as often.
    #[arg(long, value_name = "N", default_value_t = ROUNDS, value_parser = clap::value_parser!(u8).range(1..=50))]
    pub(crate) rounds: u8,
    /// Small sizes, to see that all of it works: the figures mean nothing.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Only rows whose key holds this; the keys are in the JSON.
    #[arg(long, value_name = "PART")]
    pub(crate) only: Option<String>,
    /// Print JSON instead of the table.
    #[arg(long)]
    pub(crate) json: bool,
    /// The nixtail to measure [default: the one beside this program].
    #[arg(long, value_name = "PATH")]
    pub(crate) nixtail: Option<PathBuf>,
    /// The folder with tailscaled and tailscale [default: what scripts/peers built].
    #[arg(long, env = "NIXTAIL_PEERS", value_name = "FOLDER")]
    pub(crate) peers: Option<PathBuf>,
    /// More for the environment of nixtail's agents: to see what a setting costs.
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    pub(crate) env: Vec<(String, String)>,
    /// The process within the namespaces itself.
    #[arg(long, hide = true)]
    pub(crate) inside: bool,
}

impl Default for Args {
    fn default() -> Self {
        let (quick, json, inside) = (false, false, false);
        let peers = std::env::var_os("NIXTAIL_PEERS").map(PathBuf::from);
        Self { rounds: ROUNDS, quick, only: None, json, nixtail: None, peers, env: Vec::new(), inside }
    }
}

impl Args {
    /// The command line for the process within.
    fn again(&self) -> Vec<String> {
        let mut line = vec!["nix".to_owned(), "--inside".to_owned(), format!("--rounds={}", self.rounds)];
        let flags = [(self.quick, "--quick"), (self.json, "--json")];
        line.extend(flags.into_iter().filter(|(is_set, _)| *is_set).map(|(_, flag)| flag.to_owned()));
        line.extend(self.only.iter().map(|part| format!("--only={part}")));
        line.extend(self.nixtail.iter().map(|path| format!("--nixtail={}", path.display())));
        line.extend(self.env.iter().map(|(name, value)| format!("--env={name}={value}")));
        line.extend(self.peers.iter().map(|path| format!("--peers={}", path.display())));
        line
    }
}

/// Measures, or says what this machine lacks for it.
pub(crate) fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    if args.inside {
        return measure(args);
    }
    let lacking = stage::lacking();
    if !lacking.is_empty() {
        eprintln!("left out: Nix over nixtail, tailscaled and sshd; it needs {}", lacking.join(", "));
        return Ok(());
    }
    let status = stage::enter(&args.again())?;
    if status.success() { Ok(()) } else { Err(format!("the measurements ended with {status}").into()) }
}

fn measure(args: &Args) -> Result<(), Box<dyn Error>> {
    let own = std::env::current_exe()?;
    let nixtail = args.nixtail.clone().unwrap_or_else(|| own.with_file_name("nixtail"));
    if !nixtail.is_file() {
        let told = nixtail.display();
        return Err(format!("{told} isn't there; build it (`cargo build --release`) or name one with --nixtail").into());
    }
    let peers = args.peers.clone().unwrap_or_else(|| PathBuf::from(".cache/peers"));
    let tailscale = [peers.join("tailscaled"), peers.join("tailscale")];
    let with_tailscale = tailscale.iter().all(|program| program.is_file());
    let mut programs: Vec<(&str, &Path)> = vec![("nixtail", &nixtail)];
    if with_tailscale {
        programs.extend(["tailscaled", "tailscale"].into_iter().zip(tailscale.iter().map(PathBuf::as_path)));
    } else {
        eprintln!("left out: tailscaled; {} hasn't got it (scripts/peers builds it)", peers.display());
    }
    let busybox = stage::find("busybox").ok_or("busybox isn't on PATH")?;
    programs.push(("busybox", &busybox));
    let folder = stage::set(&programs)?;
    let run = Run { args, folder: &folder, with_tailscale, transports: transports(&folder)? };
    let mut report = Report::new(args.rounds, args.quick);
    run.all(&mut report)?;
    report.print(args.json)
}

/// The lanes that this nixtail has; `[None]` where it has but one and can't be told which.
fn transports(folder: &Path) -> Result<Vec<Option<Transport>>, Box<dyn Error>> {
    let program = folder.join("bin/nixtail").display().to_string();
    let help = stage::process::run(&program, &["coordinator", "--help"])?;
    if help.contains("--transport") {
        return Ok(vec![Some(Transport::Ssh), Some(Transport::Direct)]);
    }
    eprintln!("left out: the direct lane; this nixtail has none");
    Ok(vec![None])
}

struct Run<'a> {
    args: &'a Args,
    folder: &'a Path,
    with_tailscale: bool,
    transports: Vec<Option<Transport>>,
}

impl Run<'_> {
    fn all(&self, report: &mut Report) -> Result<(), Box<dyn Error>> {
        let size = if self.args.quick { Size::QUICK } else { Size::WHOLE };
        say("two machines, their stores on tmpfs");
        let (coordinator, builder) =
            (Machine::start(self.folder, "coordinator")?, Machine::start(self.folder, "builder")?);
        let machines = [&coordinator, &builder];
        network::join_control(machines)?;
        let _sshd = sshd::start(&coordinator, &builder)?;
        let _daemon = builder.start_inside("nix-daemon", builder.command("nix-daemon", &[]))?;
        say("what is to be copied and built");
        let mut work = Workload::make(&coordinator, &builder, self.folder, size)?;

        if self.wants(&rows::CLEAN) {
            let link = Link::veth(machines)?;
            self.on_link(machines, link, &rows::CLEAN, &mut work, report)?;
        }
        if self.wants(&rows::GIGABIT) {
            let link = Link::emulated(machines, Conditions::GIGABIT)?;
            self.on_link(machines, link, &rows::GIGABIT, &mut work, report)?;
        }
        if self.wants(&rows::NEAR) {
            let link = Link::emulated(machines, Conditions::CLEAN)?;
            self.on_link(machines, link, &rows::NEAR, &mut work, report)?;
            let far = Conditions { delay: FAR, ..Conditions::CLEAN };
            self.on_link(machines, Link::emulated(machines, far)?, &rows::FAR, &mut work, report)?;
            report.count_round_trips(&rows::NEAR[0], &rows::FAR[0], 2 * FAR);
        }
        Ok(())
    }

    fn wants(&self, rows: &[Row]) -> bool {
        rows.iter().any(|row| self.wants_row(row))
    }

    fn wants_row(&self, row: &Row) -> bool {
        self.args.only.as_ref().is_none_or(|part| row.key.contains(part.as_str()))
    }

    /// Everything that is measured on one link, with nodes that start and end with it.
    fn on_link(
        &self,
        machines: [&Machine; 2],
        link: Link<'_>,
        rows: &[Row],
        work: &mut Workload<'_>,
        report: &mut Report,
    ) -> Result<(), Box<dyn Error>> {
        let [coordinator, builder] = machines;
        say(&format!("{}: nodes join", rows[0].link));
        let tailnet = Tailnet::start(self.folder, self.args.env.clone())?;
        let tailscaled = self.with_tailscale.then(|| tailnet.tailscaled(self.folder, machines)).transpose()?;
        let mut names = vec![("plain", network::RIGHT)];
        names.extend(tailscaled.iter().map(|pair| ("tailscaled", pair.builder_address.as_str())));
        sshd::name(coordinator, builder, &names)?;
        let mut lanes = vec![Lane::ssh("plain", "plain sshd")];
        lanes.extend(tailscaled.iter().map(|_| Lane::ssh("tailscaled", "tailscaled")));
        let mut pairs = Vec::new();
        for transport in &self.transports {
            let pair = tailnet.nixtail(self.folder, machines, *transport)?;
            lanes.push(Lane::nixtail(transport.unwrap_or(Transport::Ssh), &pair)?);
            pairs.push(pair);
        }
        for row in rows.iter().filter(|row| self.wants_row(row)) {
            let samples = self.measure_row(row, &lanes, work)?;
            report.add(row, &lanes, samples);
        }
        if let Some(counts) = link.counts() {
            report.note_link(rows[0].link, counts);
        }
        Ok(())
    }

    /// One row: each lane in each round, in an order that turns and turns round, so that neither a busy moment of this machine
    /// nor what the lane before left running hits one of them alone.
    fn measure_row(&self, row: &Row, lanes: &[Lane], work: &mut Workload<'_>) -> Result<Vec<Samples>, Box<dyn Error>> {
        let rounds = row.kind.rounds(self.args.rounds);
        let mut samples = vec![Samples::default(); lanes.len()];
        if row.kind.warms_up() {
            for lane in lanes {
                work.once(row.kind, lane)?;
            }
        }
        for round in 0..rounds {
            for turn in 0..lanes.len() {
                let turn = if round % 2 == 0 { turn } else { lanes.len() - 1 - turn };
                let index = (turn + usize::from(round / 2)) % lanes.len();
                let Some((lane, samples)) = lanes.get(index).zip(samples.get_mut(index)) else { continue };
                let taken = work.once(row.kind, lane)?;
                say(&format!(
                    "{}: {}: round {}/{rounds}: {} {:.3} s, {:.2} s of the coordinator's processors",
                    row.link,
                    row.what,
                    round + 1,
                    lane.title,
                    taken.time.as_secs_f64(),
                    taken.processor
                ));
                samples.add_taken(taken);
            }
        }
        Ok(samples)
    }
}

/// NAME=VALUE of a command line.
pub(crate) fn variable(text: &str) -> Result<(String, String), String> {
    let parts = text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    parts.ok_or_else(|| "NAME=VALUE is wanted".to_owned())
}

/// Progress, for people.
fn say(words: &str) {
    eprintln!("bench: {words}");
}
