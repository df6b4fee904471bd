//! `nixtail version`.

use super::{print, print_json};
use crate::local::SCHEMA;
use crate::report::Failure;

/// Print the version.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let version = env!("CARGO_PKG_VERSION");
    if args.json {
        return print_json(&serde_json::json!({ "schema": SCHEMA, "version": version }));
    }
    print(&format!("nixtail {version}"))
}
