//! `nixtail builder`: joins, and serves Nix to the coordinator that claims it.

use std::time::Duration;

use http::Method;
use nixtail_proto::run::{End, Told};

use super::builder_nix::NixArgs;
use super::duration::parse_duration;
use super::join::JoinArgs;
use super::session::{self, Background, Role};
use crate::agent::{Agent, Config};
use crate::builder::{Builder, Options};
use crate::local::Routes;
use crate::nix::inspect::Inspection;
use crate::report::{Exit, Failure};
use crate::ssh::HostKey;
use crate::state::StateFolder;

/// How long running builds may go on after SIGTERM, unless `--drain` says otherwise.
const DRAIN_AFTER_TERM: Duration = Duration::from_secs(30);

/// Join the tailnet as a Nix builder: serve `nix-daemon --stdio` over SSH inside the tunnel.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    join: JoinArgs,
    #[command(flatten)]
    background: Background,
    /// End after so long without a coordinator; 0 waits for ever.
    #[arg(long, value_name = "TIME", default_value = "300s", value_parser = parse_duration)]
    idle_timeout: Duration,
    /// How to end where no coordinator came within that time: `failure` is exit code 75.
    #[arg(long, value_name = "END", default_value = "success")]
    unclaimed: Unclaimed,
    /// How long running builds may go on when this builder is told to end; no new ones are taken meanwhile [default: 30s
    /// after SIGTERM, 0 after SIGINT, SIGHUP and `nixtail down`].
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    drain: Option<Duration>,
    /// End when the coordinator hasn't been heard of for so long, whatever control says of it.
    #[arg(long, value_name = "TIME", hide = true, default_value = "90s", value_parser = parse_duration)]
    claimer_silence: Duration,
    /// The run that this builder is for: coordinators of other runs can't claim it.
    #[arg(long, value_name = "NAME", value_parser = super::wanted::run_name)]
    run: Option<String>,
    /// The speed of one processor against a usual machine, instead of a measured one.
    #[arg(long, value_name = "FACTOR", value_parser = speed_factor)]
    speed_factor: Option<f64>,
    #[command(flatten)]
    nix: NixArgs,
}

/// What it means that nobody needed this builder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Unclaimed {
    Success,
    Failure,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    if args.nix.print_facts {
        return super::runtime()?.block_on(args.nix.print());
    }
    session::run(&args.join, &args.background, Serving { args, prepared: None, builder: None })
}

/// The role between its steps.
struct Serving<'a> {
    args: &'a Args,
    prepared: Option<Options>,
    builder: Option<Builder>,
}

impl Role for Serving<'_> {
    async fn prepare(&mut self, config: &mut Config) -> Result<(), Failure> {
        let host_key = host_key(self.args.join.state_folder()?)?;
        let Inspection { host: nix, mut facts, .. } = self.args.nix.ready().await?;
        facts.run.clone_from(&self.args.run);
        facts.speed = self.args.speed_factor.or(facts.speed);
        if let (Some(run), false) = (&self.args.run, self.args.join.has_hostname()) {
            // So that a coordinator of the run finds it without asking every builder.
            config.hostname = nixtail_proto::names::valid_hostname(&format!("nb-{run}-{}", config.hostname));
        }
        config.ssh_host_keys = vec![host_key.public_line().to_owned()];
        let idle_timeout = Some(self.args.idle_timeout).filter(|after| !after.is_zero());
        self.prepared = Some(Options {
            login: facts.login.clone(),
            idle_timeout,
            claimer_silence: self.args.claimer_silence,
            min_free_disk: self.args.nix.min_free_disk(),
            nix,
            facts,
            host_key,
        });
        Ok(())
    }

    async fn start(&mut self, agent: &Agent, routes: &mut Routes) -> Result<(), Failure> {
        let Some(options) = self.prepared.take() else {
            return Err(Failure::new(Exit::General, "the builder was started twice"));
        };
        let builder = Builder::start(agent, options).await?;
        let status = builder.status_source();
        routes.add(Method::GET, "/builder", move |_| {
            let status = status();
            async move { Ok(status) }
        });
        self.builder = Some(builder);
        Ok(())
    }

    async fn finished(&mut self) -> Result<(), Failure> {
        let Some(builder) = &self.builder else { return Ok(()) };
        let end = builder.ended().await;
        let ending = format!("the builder ends: {end}");
        if matches!(end, End::Idle(_)) && self.args.unclaimed == Unclaimed::Failure {
            return Err(
                Failure::new(Exit::TryAgain, ending).next("look at the coordinator's log; --idle-timeout waits longer")
            );
        }
        super::say(&ending);
        Ok(())
    }

    fn told(&mut self, told: Told) -> Duration {
        let drain = self.args.drain.unwrap_or(match told {
            Told::Terminate => DRAIN_AFTER_TERM,
            _ => Duration::ZERO,
        });
        if let Some(builder) = &self.builder {
            builder.end(told, drain);
            let running = builder.running();
            if running > 0 && !drain.is_zero() {
                super::say(&format!(
                    "{} may go on for {} s; no new build is taken",
                    if running == 1 { "1 running build".to_owned() } else { format!("{running} running builds") },
                    drain.as_secs()
                ));
            }
        }
        drain
    }

    async fn stop(&mut self) -> Result<(), Failure> {
        if let Some(builder) = &self.builder {
            builder.stop().await;
        }
        Ok(())
    }
}

fn speed_factor(text: &str) -> Result<f64, String> {
    let factor = text.parse::<f64>().ok().filter(|factor| (0.01..=100.0).contains(factor));
    factor.ok_or_else(|| "a speed factor is a number between 0.01 and 100".to_owned())
}

/// The SSH host key: the one that is kept, where anything is.
fn host_key(state: Option<StateFolder>) -> Result<HostKey, Failure> {
    match state {
        None => HostKey::generate(&mut rand::rng()).map_err(|error| Failure::new(Exit::General, error)),
        Some(folder) => folder.host_key(&mut rand::rng()).map_err(|error| Failure::new(Exit::Configuration, error)),
    }
}
