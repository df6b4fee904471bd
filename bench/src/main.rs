//! What nixtail moves and costs: its tunnel beside those that a user could pick instead, itself at rest, its start and first
//! contact beside tsnet's, and Nix over it beside Nix over others. What each stage of the hot path costs, `benches/stages` measures.
//!
//! What the tunnel moves between two machines, `nixtail bench` measures.

#[cfg(target_os = "linux")]
mod compare;
#[cfg(target_os = "linux")]
mod contact;
mod counted;
#[cfg(target_os = "linux")]
mod idle;
#[cfg(target_os = "linux")]
mod link;
#[cfg(target_os = "linux")]
mod nats;
#[cfg(target_os = "linux")]
mod nix;
#[cfg(target_os = "linux")]
mod stage;
#[cfg(target_os = "linux")]
mod start;

use std::error::Error;

use clap::Parser as _;

/// Measures nixtail. Without a command: all of it.
#[derive(clap::Parser)]
#[command(name = "nixtail-bench", args_conflicts_with_subcommands = true)]
struct Arguments {
    /// Where a run of all of it writes `compare.json` and `compare.svg`, too: the figures of the tunnel and its peers, and their picture.
    #[cfg(target_os = "linux")]
    #[arg(long, value_name = "FOLDER")]
    folder: Option<std::path::PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(clap::Subcommand)]
enum Command {
    #[command(hide = true)]
    Counted(counted::Args),
    #[cfg(target_os = "linux")]
    Compare(compare::Args),
    #[cfg(target_os = "linux")]
    #[command(hide = true)]
    CompareEnd(compare::load::Args),
    #[cfg(target_os = "linux")]
    Idle(idle::Args),
    #[cfg(target_os = "linux")]
    Start(start::Args),
    #[cfg(target_os = "linux")]
    Contact(contact::Args),
    #[cfg(target_os = "linux")]
    #[command(hide = true)]
    ContactNode(contact::node::Args),
    #[cfg(target_os = "linux")]
    Nats(nats::Args),
    #[cfg(target_os = "linux")]
    Nix(nix::Args),
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    match arguments.command {
        Some(Command::Counted(args)) => counted::run(&args),
        #[cfg(target_os = "linux")]
        Some(Command::Compare(args)) => compare::run(&args),
        #[cfg(target_os = "linux")]
        Some(Command::CompareEnd(args)) => compare::load::run(&args),
        #[cfg(target_os = "linux")]
        Some(Command::Idle(args)) => idle::run(&args),
        #[cfg(target_os = "linux")]
        Some(Command::Start(args)) => start::run(&args),
        #[cfg(target_os = "linux")]
        Some(Command::Contact(args)) => contact::run(&args),
        #[cfg(target_os = "linux")]
        Some(Command::ContactNode(args)) => contact::node::run(&args),
        #[cfg(target_os = "linux")]
        Some(Command::Nats(args)) => nats::run(&args),
        #[cfg(target_os = "linux")]
        Some(Command::Nix(args)) => nix::run(&args),
        None => {
            #[cfg(target_os = "linux")]
            compare::run(&arguments.folder.map_or_else(|| Ok(compare::Args::default()), compare::Args::writing_to)?)?;
            #[cfg(target_os = "linux")]
            idle::run(&idle::Args::default())?;
            #[cfg(target_os = "linux")]
            start::run(&start::Args::default())?;
            #[cfg(target_os = "linux")]
            contact::run(&contact::Args::default())?;
            #[cfg(target_os = "linux")]
            nats::run(&nats::Args::default())?;
            #[cfg(target_os = "linux")]
            nix::run(&nix::Args::default())?;
            Ok(())
        }
    }
}
