//! `nixtail up`: joins the tailnet, and nothing else.

use super::join::JoinArgs;
use super::session::{self, Background, Role};
use crate::agent::Agent;
use crate::local::Routes;
use crate::report::Failure;

/// Join the tailnet and stay on it until told to stop.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    join: JoinArgs,
    #[command(flatten)]
    background: Background,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    session::run(&args.join, &args.background, Plain)
}

/// A node that only is there.
struct Plain;

impl Role for Plain {
    fn asks_person(&self) -> bool {
        true
    }

    async fn start(&mut self, _: &Agent, _: &mut Routes) -> Result<(), Failure> {
        Ok(())
    }

    async fn finished(&mut self) -> Result<(), Failure> {
        std::future::pending().await
    }

    async fn stop(&mut self) -> Result<(), Failure> {
        Ok(())
    }
}
