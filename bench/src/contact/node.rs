//! One of our nodes of a pair, as a process of its own: joins, echoes on a port, and dials what it is told to. It speaks as
//! tests/interop/tailscale/tsnet-peer does: lines of JSON on stdout, commands on stdin, and it leaves when that ends.

use std::error::Error;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use nixtail::agent::{Agent, Config, LEAVE_DEADLINE, Listener};
use nixtail::auth::Credential;
use nixtail_proto::secret::Secret;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::time::timeout;

/// How long any step of a contact may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs inside the namespaces; the key comes from the environment.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    control: String,
    hostname: String,
    port: u16,
    #[arg(long, env = "TS_AUTHKEY", hide = true)]
    key: String,
}

/// Joins and takes part until stdin ends.
pub(crate) fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let log = tracing_subscriber::fmt().with_env_filter("nixtail=debug,nixtail_proto=debug,warn").with_ansi(false);
    log.with_writer(std::io::stderr).init();
    // As many threads as the program itself has.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(take_part(args))
}

async fn take_part(args: &Args) -> Result<(), Box<dyn Error>> {
    let agent = Agent::join(Config::new(
        args.control.clone(),
        Some(Credential::AuthKey(Secret::new(args.key.clone()))),
        args.hostname.clone(),
    ))
    .await?;
    tokio::spawn(echo(agent.listen(args.port).await?));
    let addresses = agent.status().await.own.addresses;
    println!("{}", json!({ "step": "online", "addresses": addresses }));
    println!("{}", json!({ "step": "listening" }));
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let address = line.strip_prefix("dial ").ok_or_else(|| format!("no such command: {line}"))?;
        println!("{}", dial(&agent, address.parse()?, args.port).await?);
    }
    Ok(agent.leave(LEAVE_DEADLINE).await?)
}

async fn echo(mut listener: Listener) {
    while let Ok(mut stream) = listener.accept().await {
        tokio::spawn(async move {
            let mut byte = [0];
            // A dialler that goes away is done.
            while let Ok(1) = stream.read(&mut byte).await {
                if stream.write_all(&byte).await.is_err() {
                    return;
                }
            }
        });
    }
}

async fn dial(agent: &Agent, address: IpAddr, port: u16) -> Result<serde_json::Value, Box<dyn Error>> {
    let asked = Instant::now();
    let mut netmap = agent.netmap();
    let known = netmap.wait_for(|netmap| {
        let mut addresses = netmap.iter().flat_map(|map| map.peers.values().flat_map(|peer| peer.addresses.iter()));
        addresses.any(|network| network.addr() == address)
    });
    drop(timeout(PATIENCE, known).await.map_err(|_| "the peer doesn't come into the netmap")??);
    let seen = Instant::now();
    tracing::info!("dials");
    let mut stream = agent.dial(&address.to_string(), port).await?;
    let connected = seen.elapsed();
    stream.write_all(b"x").await?;
    timeout(PATIENCE, stream.read_exact(&mut [0])).await.map_err(|_| "no byte comes back")??;
    let answered = seen.elapsed();
    tracing::info!("answered");
    Ok(json!({
        "step": "answered",
        "seen_us": seen.duration_since(asked).as_micros(),
        "connected_us": connected.as_micros(),
        "answered_us": answered.as_micros(),
    }))
}
