//! The command line: one file for each command. stdout is data, stderr is for people.

mod background;
mod bench;
mod builder;
mod builder_nix;
mod command;
mod coordinator;
mod coordinator_mode;
#[cfg(feature = "devnet")]
mod demo;
#[cfg(feature = "devnet")]
mod devnet;
mod doctor;
mod down;
mod duration;
mod ip;
mod join;
mod nc;
mod netcheck;
mod ping;
mod progress;
mod relay_map;
mod session;
mod size;
mod socket;
mod status;
mod stop_builders;
mod summary;
mod up;
mod version;
mod wanted;

use std::process::ExitCode;

use clap::{ArgAction, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::report::{Exit, Failure};

/// Puts this process on a Tailscale network: no tailscaled, no root, no TUN device.
#[derive(Parser)]
#[command(name = "nixtail", disable_version_flag = true, arg_required_else_help = true, max_term_width = 100)]
struct CommandLine {
    /// Say more on stderr: -v what happens, -vv details, -vvv everything.
    #[arg(short, long, action = ArgAction::Count, global = true)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Up(up::Args),
    Builder(builder::Args),
    Coordinator(coordinator::Args),
    #[command(alias = "stop-nix-builders")]
    StopBuilders(stop_builders::Args),
    Status(status::Args),
    Summary(summary::Args),
    Ping(ping::Args),
    Netcheck(netcheck::Args),
    Doctor(doctor::Args),
    Nc(nc::Args),
    Ip(ip::Args),
    Bench(bench::Args),
    Down(down::Args),
    #[cfg(feature = "devnet")]
    Devnet(devnet::Args),
    #[cfg(feature = "devnet")]
    Demo(demo::Args),
    Version(version::Args),
}

/// Runs the command that this process was started with.
pub fn main() -> ExitCode {
    let line = CommandLine::parse();
    start_log(line.verbose);
    let ended = match line.command {
        Command::Up(args) => up::run(&args),
        Command::Builder(args) => builder::run(&args),
        Command::Coordinator(args) => match coordinator::run(&args) {
            Ok(code) => return ExitCode::from(code),
            Err(failure) => Err(failure),
        },
        Command::StopBuilders(args) => stop_builders::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Summary(args) => summary::run(&args),
        Command::Ping(args) => ping::run(&args),
        Command::Netcheck(args) => netcheck::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Nc(args) => nc::run(&args),
        Command::Ip(args) => ip::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Down(args) => down::run(&args),
        #[cfg(feature = "devnet")]
        Command::Devnet(args) => devnet::run(&args),
        #[cfg(feature = "devnet")]
        Command::Demo(args) => demo::run(&args),
        Command::Version(args) => version::run(&args),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            say(&failure);
            ExitCode::from(failure.exit.code())
        }
    }
}

/// Tells a person something, on stderr.
fn say(message: &impl std::fmt::Display) {
    use std::io::Write;
    // A stderr that nobody reads is no reason to fail.
    let _ = writeln!(std::io::stderr(), "nixtail: {message}");
}

/// Writes one line of data to stdout.
fn print(line: &impl std::fmt::Display) -> Result<(), Failure> {
    use std::io::Write;
    let mut stdout = std::io::stdout().lock();
    let written = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
    written.map_err(|error| Failure::new(Exit::General, format!("stdout can't be written: {error}")))
}

/// Writes one JSON document to stdout.
fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::new(Exit::General, format!("the answer can't be written as JSON: {error}")))?;
    print(&text)
}

/// The user that this process runs as, by name.
fn user_name() -> Result<String, Failure> {
    let uid = rustix::process::geteuid().as_raw().to_string();
    let accounts = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    // passwd(5): name:password:uid:…
    let named = accounts.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_owned())
    });
    let named = named.or_else(|| std::env::var("USER").ok()).filter(|name| !name.is_empty());
    named.ok_or_else(|| {
        Failure::new(Exit::Configuration, format!("the user with number {uid} has no name"))
            .next("give one with --login NAME")
    })
}

/// Threads for control, SSH sessions and local streams; the dataplane has one of its own, and is what bounds them. With a
/// second one each message wakes that one, too, for it to find nothing to steal: two futex calls for each of the ten thousand
/// questions that Nix asks to copy 5,000 small paths back. Large copies take 5 to 11 % less processor time with one, too
/// (docs/measurements.md).
const WORKERS: usize = 1;

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::General, format!("the runtime can't start: {error}")))
}

fn start_log(verbose: u8) {
    let default = match verbose {
        0 => "warn,nixtail::moment=info",
        1 => "nixtail=info,nixtail_proto=info,warn",
        2 => "nixtail=debug,nixtail_proto=debug,info",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env("NIXTAIL_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::io::IsTerminal::is_terminal(&std::io::stderr());
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colour);
    // Only a test has one already.
    let _ = subscriber.try_init();
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }
}
