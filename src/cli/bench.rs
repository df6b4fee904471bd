//! `nixtail bench`: measures one TCP stream through the tunnel.

use std::time::Duration;

use serde::Serialize;

use super::duration::parse_duration;
use super::join::JoinArgs;
use super::session::{self, Background, Role};
use super::{print, print_json};
use crate::agent::{Agent, LEAVE_DEADLINE, Listener};
use crate::bench::{self, DEFAULT_PORT, Direction, Outcome, SCHEMA};
use crate::local::Routes;
use crate::report::{Exit, Failure, plain};

/// Measure what one TCP stream through the tunnel moves, and what it costs.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Serve(Serve),
    Run(Run),
}

/// Join the tailnet and take part in measurements until told to stop.
#[derive(clap::Args)]
struct Serve {
    #[command(flatten)]
    join: JoinArgs,
    #[command(flatten)]
    background: Background,
    /// The port inside the tunnel.
    #[arg(long = "bench-port", value_name = "PORT", default_value_t = DEFAULT_PORT)]
    bench_port: u16,
}

/// Join the tailnet, measure against a node that runs `bench serve`, and leave.
#[derive(clap::Args)]
struct Run {
    /// The node that runs `bench serve`.
    host: String,
    #[command(flatten)]
    join: JoinArgs,
    /// The port inside the tunnel.
    #[arg(long = "bench-port", value_name = "PORT", default_value_t = DEFAULT_PORT)]
    bench_port: u16,
    /// How long to send.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    duration: Duration,
    /// Let the other side send.
    #[arg(long)]
    reverse: bool,
    /// Print JSON; its keys are stable under one `schema` number.
    #[arg(long)]
    json: bool,
}

/// What `bench run --json` prints.
#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    host: String,
    direction: Direction,
    path: crate::agent::Path,
    bytes: u64,
    seconds: f64,
    gbit_per_s: f64,
    cpu_s_per_gb: f64,
    remote_cpu_s_per_gb: f64,
    rss_bytes: u64,
    remote_rss_bytes: u64,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    match &args.command {
        Command::Serve(serve) => {
            let role = Serving { port: serve.bench_port, listener: None, server: bench::Server::default() };
            session::run(&serve.join, &serve.background, role)
        }
        Command::Run(run) => measure(run),
    }
}

struct Serving {
    port: u16,
    listener: Option<Listener>,
    server: bench::Server,
}

impl Role for Serving {
    async fn start(&mut self, agent: &Agent, _: &mut Routes) -> Result<(), Failure> {
        self.listener = Some(agent.listen(self.port).await?);
        Ok(())
    }

    async fn finished(&mut self) -> Result<(), Failure> {
        let Some(listener) = &mut self.listener else { return Ok(()) };
        loop {
            let Ok(stream) = listener.accept().await else { return std::future::pending().await };
            let peer = stream.peer();
            if let Err(error) = self.server.handle_stream(stream, peer) {
                tracing::warn!(?peer, %error, "refused a measurement");
            }
        }
    }

    async fn stop(&mut self) -> Result<(), Failure> {
        self.listener = None;
        self.server.stop().await;
        Ok(())
    }
}

fn measure(args: &Run) -> Result<(), Failure> {
    let config = args.join.config(args.join.credential(false)?, None)?;
    let runtime = super::runtime()?;
    let report = runtime.block_on(async {
        let stop = session::stop_on_signals("ending the measurement")?;
        let agent = Agent::join_until(config, stop.clone()).await?;
        let measured = tokio::select! {
            measured = through(&agent, args) => measured,
            () = stop.cancelled() => Err(Failure::new(Exit::General, "interrupted")),
        };
        let left = agent.leave(LEAVE_DEADLINE).await.map_err(Failure::from);
        measured.and_then(|report| left.map(|()| report))
    });
    runtime.shutdown_timeout(Duration::from_millis(500));
    let report = report?;
    if args.json { print_json(&report) } else { print(&words(&report)) }
}

async fn through(agent: &Agent, args: &Run) -> Result<Report, Failure> {
    let direction = if args.reverse { Direction::Download } else { Direction::Upload };
    let stream = agent.dial(&args.host, args.bench_port).await?;
    let peer = stream.peer();
    let broken = |error: bench::BenchError| {
        Failure::new(Exit::Unavailable, error)
            .next("look whether `nixtail bench serve` runs there, with the same version")
    };
    let outcome = bench::run(stream, direction, args.duration).await.map_err(broken)?;
    let status = agent.status().await;
    let path =
        status.peers.iter().find(|known| known.node_key == peer).map_or(crate::agent::Path::None, |known| known.path);
    Ok(report(args, direction, path, &outcome))
}

#[allow(clippy::cast_precision_loss, reason = "figures for people: 53 bits of bytes are enough")]
fn report(args: &Run, direction: Direction, path: crate::agent::Path, outcome: &Outcome) -> Report {
    let (bytes, seconds) = (outcome.bytes as f64, outcome.elapsed.as_secs_f64());
    let per_gb = |cpu: f64| if bytes > 0.0 { cpu / (bytes / 1e9) } else { 0.0 };
    Report {
        schema: SCHEMA,
        host: plain(&args.host),
        direction,
        path,
        bytes: outcome.bytes,
        seconds,
        gbit_per_s: if seconds > 0.0 { bytes * 8.0 / seconds / 1e9 } else { 0.0 },
        cpu_s_per_gb: per_gb(outcome.local.cpu_s),
        remote_cpu_s_per_gb: per_gb(outcome.remote.cpu_s),
        rss_bytes: outcome.local.rss_bytes,
        remote_rss_bytes: outcome.remote.rss_bytes,
    }
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
fn words(report: &Report) -> String {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    format!(
        "{:.3} Gbit/s over {} ({:.0} MiB in {:.2} s); CPU s/GB {:.2} here, {:.2} there; RSS {:.0} MiB here, {:.0} MiB there",
        report.gbit_per_s,
        report.path,
        mib(report.bytes),
        report.seconds,
        report.cpu_s_per_gb,
        report.remote_cpu_s_per_gb,
        mib(report.rss_bytes),
        mib(report.remote_rss_bytes),
    )
}
