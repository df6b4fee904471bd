//! Looking at a machine that is to be a builder: its facts, what would fail, and what its Nix is given.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nixtail_proto::nix_command::CONTROL_PROTOCOL;
use tokio::time::timeout;

use super::configuration::{self, Division, Wishes};
use super::daemon::NixHost;
use super::facts::{FACTS_SCHEMA, Facts};
use super::features;
use super::machine::{self, DiskError, Membership, Size};
use super::preflight::{Evidence, Problem, problems};
use super::probe::probe;
use super::settings::{self, QuestionError, Settings};
use super::spawn::{ChildSpec, GroupChild, SpawnError};
use super::store::StoreAccess;

/// How long the system may take to say whether there is a user, or somebody behind a socket.
const LOOK_UP_DEADLINE: Duration = Duration::from_secs(5);

/// What is asked of an inspection.
#[derive(Debug, Clone)]
pub struct Request {
    /// The Nix to look at. Its `settings` are the operator's own `NIX_CONFIG`.
    pub host: NixHost,
    /// The user that coordinators log in as.
    pub login: String,
    /// The user that this process is, whom Nix' daemon trusts or not.
    pub user: String,
    /// What the operator wants of it.
    pub wishes: Wishes,
    /// The least free disk, in bytes.
    pub min_free_disk: u64,
}

/// What an inspection found.
#[derive(Debug, Clone)]
pub struct Inspection {
    /// The Nix with all the settings that a builder gives it: what to serve.
    pub host: NixHost,
    /// The facts.
    pub facts: Facts,
    /// What would fail or hurt, the worst first.
    pub problems: Vec<Problem>,
}

/// Why a machine can't be looked at. All of these are its own doing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InspectError {
    /// Nix doesn't say how it is configured.
    #[error(transparent)]
    Question(#[from] QuestionError),
    /// Its daemon can't be started.
    #[error(transparent)]
    Start(#[from] SpawnError),
    /// The disk can't be looked at.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Looks at this machine and lets its Nix build something. It takes some 0.4 s; each step has its own deadline.
///
/// # Errors
/// When Nix doesn't even say how it is configured. What else is wrong is among the problems.
pub async fn inspect(request: Request) -> Result<Inspection, InspectError> {
    let Request { mut host, login, user, wishes, min_free_disk } = request;
    let inherited = std::mem::take(&mut host.settings);
    host.settings = configuration::given(&inherited, &wishes);
    // Blocking for a tenth of a second, on a thread for that.
    let speed = tokio::task::spawn_blocking(machine::speed);
    let (settings, version) = tokio::try_join!(Settings::ask(&host), settings::version(&host))?;
    let opened = host.store.opened(&host.home, &version);
    let store_folder = host.store.store_folder().display().to_string();
    let trial = format!("{}max-jobs = 1\nbuilders =\n", host.settings);
    let findings = probe(&host.daemon(), &store_folder, &settings.system, &trial).await?;

    let inside = findings.build.as_ref().ok();
    let membership = inside.and_then(|inside| inside.membership.clone());
    let size = Size::of(&membership.unwrap_or_else(Membership::own));
    let features = features::real(&settings, inside, &size);
    let division = Division::of(&wishes, &settings, &size);
    host.settings = configuration::serving(&inherited, &wishes, division, &features);
    let free_disk = machine::free_disk(&opened.on_disk)?;
    let reach = inside.map(|inside| inside.settings_reach);
    let seconds = |limit: Option<Duration>| limit.filter(|_| reach == Some(true)).map(configuration::whole_seconds);
    let nobody_listens = opened.access == StoreAccess::Daemon
        && findings.build.is_err()
        && refuses_connections(host.store.daemon_socket()).await;
    let problems = problems(&Evidence {
        nobody_listens,
        user: &user,
        login: &login,
        login_exists: has_user(&login).await,
        store: &host.store,
        opened: &opened,
        settings: &settings,
        wishes: &wishes,
        findings: &findings,
        free_disk,
        min_free_disk,
    });
    let facts = Facts {
        schema: FACTS_SCHEMA,
        protocol: CONTROL_PROTOCOL,
        login,
        sandbox: inside.map_or(settings.sandbox, |inside| inside.sandboxed),
        system: settings.system,
        extra_platforms: settings.extra_platforms,
        features,
        cores: size.cores,
        memory_bytes: size.memory_bytes,
        free_disk_bytes: free_disk,
        nix_version: version,
        store_folder,
        remote_store: host.store.published(),
        max_jobs: division.jobs,
        trusted: findings.trusted,
        speed: speed.await.ok(),
        memory_available_bytes: Some(machine::now(&opened.on_disk).memory_available_bytes),
        store_on_disk: Some(opened.on_disk.display().to_string()),
        run: None,
        store_access: Some(opened.access),
        cores_per_build: (reach == Some(true)).then_some(division.cores),
        timeout_seconds: seconds(wishes.timeout),
        max_silent_seconds: seconds(wishes.max_silent_time),
        settings_reach_builds: reach,
    };
    Ok(Inspection { host, facts, problems })
}

/// Whether there is nobody behind a socket. Nix says so itself, but not all versions say it where we can hear it.
async fn refuses_connections(socket: Option<PathBuf>) -> bool {
    let Some(socket) = socket else { return false };
    let connected = timeout(LOOK_UP_DEADLINE, tokio::net::UnixStream::connect(socket)).await;
    let refusals = [io::ErrorKind::ConnectionRefused, io::ErrorKind::NotFound];
    matches!(connected, Ok(Err(error)) if refusals.contains(&error.kind()))
}

/// Whether this machine knows a user of that name, from `/etc/passwd` or wherever `getent` looks.
async fn has_user(name: &str) -> bool {
    let accounts = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    if accounts.lines().any(|line| line.split(':').next() == Some(name)) {
        return true;
    }
    let getent =
        ["/usr/bin/getent", "/run/current-system/sw/bin/getent"].into_iter().find(|path| Path::new(path).exists());
    let Some(getent) = getent else { return false };
    let spec = ChildSpec::new(getent, ["passwd", "--", name]);
    let Ok(mut child) = GroupChild::start(&spec).await else { return false };
    drop(child.take_pipes());
    let ended = timeout(LOOK_UP_DEADLINE, child.wait()).await;
    ended.is_ok_and(|ended| ended.is_ok_and(|status| status.success()))
}
