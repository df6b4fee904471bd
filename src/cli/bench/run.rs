//! `nixtail bench run`: measures against a node that runs `bench serve`.

use std::io::IsTerminal as _;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser as _};

use super::AgentArgs;
use super::asked::{self, RunQuestion};
use crate::agent::{Agent, LEAVE_DEADLINE};
use crate::bench::{self, DEFAULT_PORT, Direction, Live, MAX_STREAMS, Plan, Report, Through, words};
use crate::cli::duration::parse_duration;
use crate::cli::join::JoinArgs;
use crate::cli::{print, print_json, session};
use crate::report::{Exit, Failure, plain};

/// Measure against a node that runs `bench serve`: from a node that joins for it, or from the running agent.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The node that runs `bench serve`: its name, full name, or tailnet address.
    host: String,
    #[command(flatten)]
    join: JoinArgs,
    #[command(flatten)]
    agent: AgentArgs,
    /// The port inside the tunnel.
    #[arg(long = "bench-port", value_name = "PORT", default_value_t = DEFAULT_PORT)]
    bench_port: u16,
    /// How many streams, each way.
    #[arg(short = 'P', long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_STREAMS)))]
    streams: u16,
    /// Which way the bytes go, as seen from here; both at once is N streams each way.
    #[arg(long, value_name = "WAY", default_value = Direction::NAMES[0],
          value_parser = PossibleValuesParser::new(Direction::NAMES).try_map(|name| name.parse::<Direction>()))]
    direction: Direction,
    /// How long to send, 10 minutes at most.
    #[arg(short = 't', long, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    duration: Duration,
    /// Ping beside the streams: what other packets wait, before and under load. Takes a second more.
    #[arg(long)]
    latency: bool,
    /// Print JSON; its keys are stable under one `schema` number. What goes on is told on stderr.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let plan = Plan { latency: args.latency, ..Plan::new(args.direction, args.streams, args.duration) };
    plan.check().map_err(|error| Failure::new(Exit::Usage, error))?;
    let show = Show {
        host: plain(&args.host),
        plan,
        json: args.json,
        live_on_stdout: !args.json && std::io::stdout().is_terminal(),
    };
    let interrupted = match args.agent.client(&args.join)? {
        Some(client) => {
            let question = RunQuestion { host: args.host.clone(), port: args.bench_port, plan: show.plan.clone() };
            let report = asked::run(&client, &question, |live| show.live(&live))?;
            show.report(&report)?;
            report.interrupted
        }
        None => joined(args, &show)?,
    };
    if interrupted {
        return Err(Failure::new(Exit::General, "interrupted: the report holds what there was until then"));
    }
    Ok(())
}

/// Measures from a node that joins for it. Answers whether somebody ended the run before its time.
fn joined(args: &Args, show: &Show) -> Result<bool, Failure> {
    let config = args.join.config(args.join.credential(false)?, None)?;
    let runtime = crate::cli::runtime()?;
    let measured = runtime.block_on(async {
        let stop = session::stop_on_signals("ending the measurement")?;
        let agent = Agent::join_until(config, stop.clone()).await?;
        let target = Through::new(agent.clone(), args.host.clone(), args.bench_port);
        let ended = bench::run(&target, &args.host, &show.plan, &stop, |live| show.live(&live)).await;
        let told = match ended {
            // Before the node leaves, which may take a while.
            Ok(report) => show.report(&report).map(|()| report.interrupted),
            Err(error) => Err(error.failure(&args.host)),
        };
        let left = agent.leave(LEAVE_DEADLINE).await.map_err(Failure::from);
        session::first_failure([told.clone().map(drop), left])?;
        told
    });
    runtime.shutdown_timeout(Duration::from_millis(500));
    measured
}

/// Where what goes to: the report to stdout; a line for each second there, too, where people look at it, and else to stderr.
struct Show {
    host: String,
    plan: Plan,
    json: bool,
    live_on_stdout: bool,
}

impl Show {
    fn live(&self, live: &Live) {
        let line = match live {
            Live::Begins { path } => words::beginning(&self.host, &self.plan, *path),
            Live::Interval(interval) => words::interval(self.plan.direction, interval),
            Live::PathChange(change) => words::path_change(change),
        };
        // Whoever closed it doesn't want to see it; the report tells whether it can be written.
        let _ = if self.live_on_stdout {
            print(&line)
        } else {
            use std::io::Write as _;
            drop(writeln!(std::io::stderr(), "{line}"));
            Ok(())
        };
    }

    fn report(&self, report: &Report) -> Result<(), Failure> {
        if self.json { print_json(report) } else { print(&words::report(report).join("\n")) }
    }
}
