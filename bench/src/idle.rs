//! What a node costs that does nothing: a real process among 256 peers on a devnet in ours, some of them with streams to it that nobody
//! uses.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nixtail::agent::{Agent, Config, LEAVE_DEADLINE};
use nixtail::auth::Credential;
use nixtail_devnet::{AuthKeyOptions, Config as DevnetConfig, Crowd, Devnet, Policy, RELAY_REGION};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::stage::process::Running;

/// Peers in the netmap.
const PEERS: usize = 256;
/// Those that are there, each with a stream.
const PRESENT: usize = 10;
const PORT: u16 = 5201;
/// How long each step may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between the last thing that happens and the measurement.
const REST: Duration = Duration::from_secs(3);
/// What is wanted: a part of one processor, and MiB.
const MOST_CPU: f64 = 0.01;
const MOST_MEMORY: f64 = 20.0;
const LARGEST_BINARY: f64 = 15.0;

/// Measure what a node costs that does nothing, among 256 peers.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Seconds that each state is looked at.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// The nixtail to measure [default: the one beside this program].
    #[arg(long, value_name = "PATH")]
    nixtail: Option<PathBuf>,
}

impl Default for Args {
    fn default() -> Self {
        Self { seconds: 10, nixtail: None }
    }
}

/// Measures, and prints the rows.
pub(crate) fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let nixtail = args
        .nixtail
        .clone()
        .map_or_else(|| Ok(std::env::current_exe()?.with_file_name("nixtail")), Ok::<_, std::io::Error>)?;
    let folder = std::env::temp_dir().join(format!("nixtail-bench-idle-{}", std::process::id()));
    fs::create_dir(&folder)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let measured = runtime.block_on(measure(args, &nixtail, &folder));
    fs::remove_dir_all(&folder)?;
    let [busy, quiet] = measured?;
    println!("A node that does nothing, {PEERS} peers in its netmap, {} s each:", args.seconds);
    let row = |what: &str, value: f64, unit: &str, most: f64| {
        let verdict = if cfg!(debug_assertions) {
            "not judged"
        } else if value <= most {
            "met"
        } else {
            "MISSED"
        };
        println!("  {what:<52} {value:>7.2} {unit:<4} (at most {most}: {verdict})");
    };
    for (what, cost) in
        [(format!("{PRESENT} tunnels with open streams"), busy), (format!("{PRESENT} tunnels, no stream"), quiet)]
    {
        row(&format!("{what}: one processor"), 100.0 * cost.cpu, "%", 100.0 * MOST_CPU);
        row(&format!("{what}: resident memory"), cost.memory, "MiB", MOST_MEMORY);
    }
    row("the program", mib(fs::metadata(&nixtail)?.len()), "MiB", LARGEST_BINARY);
    println!();
    Ok(())
}

/// What the process took.
#[derive(Debug, Clone, Copy)]
struct Cost {
    /// A part of one processor.
    cpu: f64,
    /// MiB.
    memory: f64,
}

async fn measure(args: &Args, nixtail: &Path, folder: &Path) -> Result<[Cost; 2], Box<dyn Error>> {
    let devnet = Devnet::start(DevnetConfig { policy: Policy::allow_all(), ..DevnetConfig::default() }).await?;
    let crowd = Crowd { count: PEERS - PRESENT, home_region: RELAY_REGION, ..Crowd::default() };
    devnet.add_crowd(&crowd)?;
    let key = devnet.add_auth_key(AuthKeyOptions { reusable: true, ephemeral: true, ..AuthKeyOptions::default() })?;
    let (accepted, mut streams) = mpsc::channel(PRESENT);
    let mut agents = Vec::new();
    for number in 0..PRESENT {
        let credential = Some(Credential::AuthKey(key.clone()));
        let agent = Agent::join(Config::new(devnet.url(), credential, format!("peer-{number}"))).await?;
        let (mut listener, accepted) = (agent.listen(PORT).await?, accepted.clone());
        tokio::spawn(async move {
            while let Ok(stream) = listener.accept().await {
                // Whoever doesn't want any more streams has measured.
                let _ = accepted.send(stream).await;
            }
        });
        agents.push(agent);
    }

    let socket = folder.join("sock").display().to_string();
    let mut command = Command::new(nixtail);
    command.args(["up", "--login-server", &devnet.url(), "--hostname", "idle", "--socket", &socket]);
    command.env("TS_AUTHKEY", key.expose());
    let mut idle = Running::start("nixtail up", command, &folder.join("log"))?;
    idle.wait_until_ready(PATIENCE)?;
    let (mut clients, mut held) = (Vec::new(), Vec::new());
    for number in 0..PRESENT {
        let mut client = Command::new(nixtail);
        client.args(["nc", &format!("peer-{number}"), &PORT.to_string(), "--socket", &socket]);
        clients.push(Client(client.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?));
        let stream = timeout(PATIENCE, streams.recv()).await.map_err(|_| format!("no stream to peer-{number}"))?;
        held.push(stream.ok_or("nobody listens any more")?);
    }

    let seconds = Duration::from_secs(args.seconds);
    sleep(REST).await;
    let busy = cost(idle.id(), seconds).await?;
    drop((clients, held));
    sleep(REST).await;
    let quiet = cost(idle.id(), seconds).await?;
    drop(idle);
    for agent in agents {
        agent.leave(LEAVE_DEADLINE).await?;
    }
    devnet.shutdown().await;
    Ok([busy, quiet])
}

/// `nixtail nc`, which keeps a stream open. Dropping it ends it.
struct Client(Child);

impl Drop for Client {
    fn drop(&mut self) {
        // One that ended already needs none.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a process takes while `time` passes.
async fn cost(process: u32, time: Duration) -> Result<Cost, Box<dyn Error>> {
    let (before, begun) = (cpu_time(process)?, Instant::now());
    sleep(time).await;
    let cpu = (cpu_time(process)? - before).as_secs_f64() / begun.elapsed().as_secs_f64();
    Ok(Cost { cpu, memory: mib(resident(process)?) })
}

/// User and system time: fields 14 and 15 of `stat` (proc_pid_stat(5)), in ticks of which there are a hundred a second.
fn cpu_time(process: u32) -> Result<Duration, Box<dyn Error>> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name, which is the second field, may hold spaces.
    let (_, fields) = stat.rsplit_once(") ").ok_or("no such stat")?;
    let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(Duration::from_millis(10 * ticks))
}

/// Resident memory in bytes (`VmRSS`, proc_pid_status(5)).
fn resident(process: u32) -> Result<u64, Box<dyn Error>> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}

#[allow(clippy::cast_precision_loss, reason = "figures for people: 53 bits of bytes are enough")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
