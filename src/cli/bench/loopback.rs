//! `nixtail bench loopback`: what this machine could do, without a network.

use std::time::Duration;

use crate::bench::loopback::{self, LoopbackError, MAX_STAGE_TIME, words};
use crate::cli::duration::parse_duration;
use crate::cli::{print, print_json, say, session};
use crate::report::terminal::Terminal;
use crate::report::{Exit, Failure};

/// Measure what this machine could do, stage by stage and without a network: TCP, WireGuard, system calls, all of it.
#[derive(clap::Args)]
pub(super) struct Args {
    /// How long to measure each stage, a minute at most.
    #[arg(short = 't', long, value_name = "TIME", default_value = "1s", value_parser = parse_duration)]
    duration: Duration,
    /// Print JSON; its keys are stable under one `schema` number.
    #[arg(long)]
    json: bool,
}

/// Threads beside the two dataplanes: one for the application at each end.
const WORKERS: usize = 2;

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    if args.duration.is_zero() || args.duration > MAX_STAGE_TIME {
        let message =
            format!("a stage is measured for more than nothing, and for {} s at most", MAX_STAGE_TIME.as_secs());
        return Err(Failure::new(Exit::Usage, message).next("see --duration"));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Exit::General, format!("the runtime can't start: {error}")))?;
    let measured = runtime.block_on(async {
        let stop = session::stop_on_signals("ending the measurement")?;
        let tell = |what: &str| say(&format_args!("measuring {what}"));
        loopback::run(args.duration, &stop, tell).await.map_err(failure)
    });
    runtime.shutdown_timeout(Duration::from_millis(500));
    let measured = measured?;
    if cfg!(debug_assertions) {
        say(&"this build isn't optimised: these figures say nothing of a release");
    }
    if args.json {
        return print_json(&measured);
    }
    print(&words::lines(&measured, &Terminal::of(std::io::stdout())).join("\n"))
}

fn failure(error: LoopbackError) -> Failure {
    match error {
        LoopbackError::Stage(..) => {
            Failure::new(Exit::Configuration, error).next("`nixtail doctor` looks at what this machine lacks")
        }
        _ => Failure::new(Exit::General, error),
    }
}
