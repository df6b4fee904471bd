//! `nixtail summary`: what came of a coordinator's run until now.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::socket::SocketArgs;
use super::{print, print_json};
use crate::report::summary::{self, Summary};
use crate::report::terminal::Terminal;
use crate::report::{Exit, Failure};

/// The agent answers from memory.
const DEADLINE: Duration = Duration::from_secs(10);

/// Show what came of this coordinator's run until now: who built how much, who waited, what failed.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Write Markdown with a Mermaid chart, as GitHub shows it: `>> "$GITHUB_STEP_SUMMARY"`.
    #[arg(long, conflicts_with_all = ["json", "svg"])]
    markdown: bool,
    /// Write the timeline as an SVG picture to this file; `-` is stdout.
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    svg: Option<PathBuf>,
    /// Print JSON; its keys are stable under one `schema` number.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let answer: serde_json::Value = args.socket.client()?.get("/summary", DEADLINE)?;
    if args.json {
        // As the agent says it: keys that this version doesn't know pass through.
        return print_json(&answer);
    }
    let read: Summary = serde_json::from_value(answer).map_err(|error| {
        Failure::new(Exit::General, format!("the agent's summary can't be read: {error}"))
            .next("agent and command are of different versions; --json shows what it says")
    })?;
    match &args.svg {
        Some(file) if file.as_os_str() == "-" => print(&summary::svg(&read).trim_end()),
        Some(file) => std::fs::write(file, summary::svg(&read))
            .map_err(|error| Failure::new(Exit::General, format!("{}: {error}", file.display()))),
        None if args.markdown => print(&summary::markdown(&read).trim_end()),
        None => summary::lines(&read, &Terminal::of(std::io::stdout())).iter().try_for_each(print),
    }
}

/// Tells what came of a run at its end: a table on stderr where there was a builder at all, and the files in `folder`.
///
/// # Errors
/// When the files can't be written.
pub(super) fn tell(told: &Summary, folder: Option<&Path>) -> Result<(), Failure> {
    if !told.builders.is_empty() {
        let lines = summary::lines(told, &Terminal::of(std::io::stderr()));
        // A stderr that nobody reads is no reason to fail.
        let _ = writeln!(std::io::stderr(), "{}", lines.join("\n"));
    }
    let Some(folder) = folder else { return Ok(()) };
    summary::write(folder, told).map_err(|error| {
        Failure::new(Exit::General, format!("the summary can't be written: {error}"))
            .next("name a folder that this user can write with --summary")
    })
}
