//! `nixtail demo`: a Nix build through our own tunnel, on this machine alone.

use std::time::Instant;

use crate::demo::DemoError;
use crate::report::{Exit, Failure};

/// Show a Nix build on two builders through our own tunnel, on this machine alone, and leave nothing behind.
#[derive(clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_: &Args) -> Result<(), Failure> {
    let nixtail = std::env::current_exe()
        .map_err(|error| Failure::new(Exit::General, format!("this program's own path is unknown: {error}")))?;
    let runtime = super::runtime()?;
    let begun = Instant::now();
    // The first line with the time, and what belongs to it below.
    let say = |text: &str| {
        let stamp = format!("[{:5.1}s] ", begun.elapsed().as_secs_f64());
        let below = format!("\n{:1$}", "", stamp.len());
        // Whoever closed stdout doesn't want to see it; the exit code tells all the same.
        let _ = super::print(&format!("{stamp}{}", text.replace('\n', &below)));
    };
    let closing = runtime.block_on(async {
        let stop = super::session::stop_on_signals("ending the demo")?;
        crate::demo::run(&nixtail, stop, &say).await.map_err(failure)
    })?;
    super::print(&closing)
}

fn failure(error: DemoError) -> Failure {
    let exit = match &error {
        DemoError::NoNamespaces | DemoError::Missing { .. } => Exit::Configuration,
        _ => Exit::General,
    };
    Failure::new(exit, error)
}
