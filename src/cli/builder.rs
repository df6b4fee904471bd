//! `nixtail builder`: joins, and serves Nix to the coordinator that claims it.

use std::path::PathBuf;
use std::time::Duration;

use http::Method;
use nixtail_proto::run::Told;

use super::duration::parse_duration;
use super::join::JoinArgs;
use super::session::{self, Background, Role};
use crate::agent::{Agent, Config};
use crate::builder::{Builder, MIN_FREE_DISK, Options};
use crate::local::Routes;
use crate::nix::daemon::{NixHost, NixPrograms, StoreConfig};
use crate::nix::facts::Facts;
use crate::report::{Exit, Failure};
use crate::ssh::HostKey;

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
    /// How long running builds may go on when this builder is told to end; no new ones are taken meanwhile [default: 30s
    /// after SIGTERM, 0 after SIGINT, SIGHUP and `nixtail down`].
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    drain: Option<Duration>,
    /// End when the coordinator hasn't been heard of for so long, whatever control says of it.
    #[arg(long, value_name = "TIME", hide = true, default_value = "90s", value_parser = parse_duration)]
    claimer_silence: Duration,
    /// The user that coordinators log in as: your word that this process is that user [default: its own user].
    #[arg(long, value_name = "NAME")]
    login: Option<String>,
    /// Serve a chroot store in this folder instead of the system's store.
    #[arg(long, value_name = "FOLDER")]
    store: Option<PathBuf>,
    /// The `nix-daemon` to run [default: the one on PATH].
    #[arg(long, value_name = "PATH")]
    nix_daemon: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
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
        let nix = nix_host(self.args)?;
        let login = self.args.login.clone().map_or_else(super::user_name, Ok)?;
        let facts = Facts::gather(&nix, &login).await.map_err(|error| {
            Failure::new(Exit::Configuration, format!("this machine can't be a builder: {error}"))
                .next("run `nix-store --version` and `nix-build` here by hand; --nix-daemon and --store name another Nix or store")
        })?;
        let host_key = HostKey::generate(&mut rand::rng()).map_err(|error| Failure::new(Exit::General, error))?;
        config.ssh_host_keys = vec![host_key.public_line().to_owned()];
        let idle_timeout = Some(self.args.idle_timeout).filter(|after| !after.is_zero());
        self.prepared = Some(Options {
            login,
            idle_timeout,
            claimer_silence: self.args.claimer_silence,
            min_free_disk: MIN_FREE_DISK,
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
        super::say(&format!("the builder ends: {end}"));
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

fn nix_host(args: &Args) -> Result<NixHost, Failure> {
    let unfit = |error: &dyn std::fmt::Display| {
        Failure::new(Exit::Configuration, error).next("install Nix, or name its daemon with --nix-daemon PATH")
    };
    let path = match &args.nix_daemon {
        Some(daemon) => daemon.parent().map(|folder| folder.as_os_str().to_owned()),
        None => std::env::var_os("PATH"),
    };
    let mut programs = NixPrograms::find(path.as_ref()).map_err(|error| unfit(&error))?;
    if let Some(daemon) = &args.nix_daemon {
        programs.nix_daemon = std::path::absolute(daemon).map_err(|error| unfit(&error))?;
    }
    let store = match &args.store {
        None => StoreConfig::System,
        Some(root) => StoreConfig::Chroot { root: std::path::absolute(root).map_err(|error| unfit(&error))? },
    };
    Ok(NixHost {
        programs,
        store,
        home: std::env::var_os("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from),
        configuration: std::env::var_os("NIX_CONF_DIR").map(PathBuf::from),
    })
}
