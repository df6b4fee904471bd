//! `nixtail devnet`: a control server, a relay and a STUN server on loopback, for trying things out.

use std::net::IpAddr;
use std::path::PathBuf;

use nixtail_devnet::{AuthKeyOptions, Config, Crowd, Devnet, DevnetError, FederatedIdentity, OauthClient, Policy};

use super::{print, print_json, runtime, session};
use crate::local::SCHEMA;
use crate::report::{Exit, Failure};

/// Run a tailnet of your own on loopback, for tests: control server, relay, STUN.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The address to listen on.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    listen: IpAddr,
    /// The control server's port; 0 takes a free one.
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    port: u16,
    /// Answer STUN at this address, too, so that nodes can tell what kind of NAT they are behind; may be repeated.
    #[arg(long, value_name = "ADDRESS")]
    stun: Vec<IpAddr>,
    /// Serve an address that others can reach all the same. Whoever has the key can join; nothing is kept.
    #[arg(long)]
    force: bool,
    /// Let every node reach every other, instead of the policy of a run with builders and a coordinator.
    #[arg(long)]
    allow_all: bool,
    /// Who may reach and log in where, as a Tailscale policy file (HuJSON): grants, acls, ssh, tagOwners, groups, hosts.
    #[arg(long, value_name = "FILE", conflicts_with = "allow_all")]
    policy: Option<PathBuf>,
    /// The tags that the key's nodes have, and that those may ask for which log in otherwise (--json tells with what), separated
    /// by commas or spaces.
    #[arg(long, value_name = "TAGS")]
    tags: Option<String>,
    /// Put so many made-up nodes into the tailnet, too: as large in a netmap as real ones, and never there.
    #[arg(long, value_name = "N", default_value_t = 0)]
    crowd: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let policy = policy(args)?;
    let tags = super::join::tags(args.tags.as_deref().unwrap_or_default())?;
    runtime()?.block_on(async {
        let stop = session::stop_on_signals("stopping the devnet")?;
        let config = Config {
            listen: args.listen,
            force: args.force,
            control_port: args.port,
            more_stun: args.stun.clone(),
            policy,
            ..Config::default()
        };
        let devnet = Devnet::start(config).await.map_err(|error| refused(&error))?;
        let client_tags = tags.clone();
        let options = AuthKeyOptions { reusable: true, ephemeral: true, tags, ..AuthKeyOptions::default() };
        let key = devnet.add_auth_key(options).map_err(|error| refused(&error))?;
        let crowd = Crowd { count: args.crowd, ..Crowd::default() };
        devnet.add_crowd(&crowd).map_err(|error| refused(&error))?;
        // The key is this command's answer: it opens a tailnet that ends with this process.
        let (url, key) = (devnet.url(), key.expose());
        if args.json {
            let clients = clients(&devnet, client_tags).map_err(|error| refused(&error))?;
            print_json(&Printed { schema: SCHEMA, login_server: &url, auth_key: key, clients })?;
        } else {
            super::say(&"this tailnet is for tests; it ends with this process");
            print(&format!("ready TS_CONTROL_URL={url} TS_AUTHKEY={key}"))?;
        }
        stop.cancelled().await;
        devnet.shutdown().await;
        Ok(())
    })
}

/// What `--json` prints.
#[derive(serde::Serialize)]
struct Printed<'a> {
    schema: u32,
    login_server: &'a str,
    auth_key: &'a str,
    #[serde(flatten)]
    clients: Option<Clients>,
}

/// Other ways in, for the tags that were given.
#[derive(serde::Serialize)]
struct Clients {
    /// The secret of an OAuth client, which says where its API is.
    client_secret: String,
    /// A workload identity's client id and audience.
    client_id: String,
    audience: &'static str,
    /// What a job on GitHub, which has this identity, asks for a token with.
    id_token_request_url: String,
    id_token_request_token: String,
}

fn clients(devnet: &Devnet, tags: Vec<String>) -> Result<Option<Clients>, DevnetError> {
    const AUDIENCE: &str = "api.devnet.invalid/job";
    const SUBJECT: &str = "repo:devnet/devnet:environment:test";
    if tags.is_empty() {
        return Ok(None);
    }
    let scopes = vec!["auth_keys".to_owned()];
    let secret = devnet.add_oauth_client(OauthClient { scopes: scopes.clone(), tags: tags.clone() })?;
    let (subject, audience) = (SUBJECT.to_owned(), AUDIENCE.to_owned());
    let client_id = devnet.add_federated_identity(FederatedIdentity { subject, audience, scopes, tags })?;
    let job = devnet.github_job(SUBJECT)?;
    Ok(Some(Clients {
        client_secret: format!("{}?baseURL={}", secret.expose(), devnet.url()),
        client_id,
        audience: AUDIENCE,
        id_token_request_url: job.url,
        id_token_request_token: job.bearer.expose().to_owned(),
    }))
}

fn policy(args: &Args) -> Result<Policy, Failure> {
    let Some(file) = &args.policy else {
        return Ok(if args.allow_all { Policy::allow_all() } else { Policy::nix_ci() });
    };
    let wrong = |error: &dyn std::fmt::Display| {
        Failure::new(Exit::Configuration, format!("cannot use the policy {}: {error}", file.display()))
    };
    let text = std::fs::read_to_string(file).map_err(|error| wrong(&error))?;
    Policy::parse(&text).map_err(|error| wrong(&error))
}

fn refused(error: &DevnetError) -> Failure {
    Failure::new(Exit::Configuration, error)
}
