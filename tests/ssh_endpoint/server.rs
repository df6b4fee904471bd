//! An endpoint on loopback TCP with a made-up peer, and OpenSSH as its client.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nixtail::nix::spawn::ChildSpec;
use nixtail::ssh::{
    AdmissionControl, AllowedCommands, ConnectionReport, ControlReply, ControlVerbs, Endpoint, EndpointConfig, HostKey,
    Limits, Peer, SshError,
};
use nixtail_proto::key::NodePublic;
use nixtail_proto::nix_command::ControlRequest;
use nixtail_proto::ssh_policy::{PrincipalFacts, evaluate};
use nixtail_proto::tailcfg::{SshAction, SshPolicy, SshPrincipal, SshRule};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub(crate) const DAEMON: &str = "nix-daemon --stdio";
/// How long anything may take on a machine that is busy with other tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) type Policy = Arc<Mutex<Option<SshPolicy>>>;

pub(crate) struct Server {
    pub(crate) port: u16,
    /// The host key in base64.
    pub(crate) host_key: String,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) admission: Arc<AdmissionControl>,
    pub(crate) policy: Policy,
    pub(crate) reports: mpsc::UnboundedReceiver<Result<ConnectionReport, SshError>>,
    pub(crate) cancel: CancellationToken,
}

struct Verbs;

impl ControlVerbs for Verbs {
    fn answer(&self, peer: &Peer, request: ControlRequest) -> Pin<Box<dyn Future<Output = ControlReply> + Send + '_>> {
        let stdout = format!("{} {} {:?}\n", peer.name, request.verb.as_str(), request.arguments).into_bytes();
        Box::pin(async move { ControlReply { stdout, stderr: "words\n".into(), exit_code: 7 } })
    }
}

pub(crate) fn allow(change: impl FnOnce(&mut SshRule)) -> Option<SshPolicy> {
    let mut rule = SshRule {
        principals: vec![Some(SshPrincipal { node_ip: "100.64.0.7".into(), ..Default::default() })],
        ssh_users: BTreeMap::from([("*".into(), "=".into())]),
        action: Some(SshAction { accept: true, ..Default::default() }),
        ..Default::default()
    };
    change(&mut rule);
    Some(SshPolicy { rules: vec![Some(rule)] })
}

pub(crate) fn shell(script: &str) -> ChildSpec {
    ChildSpec::new("/bin/sh", ["-c", script]).with_variable("PATH", "/usr/bin:/bin")
}

pub(crate) fn commands(daemon: ChildSpec) -> AllowedCommands {
    AllowedCommands { daemon, serve: shell("echo served"), published_store: Some("/a store".into()) }
}

pub(crate) async fn serve(policy: Option<SshPolicy>, commands: AllowedCommands) -> Server {
    serve_within(policy, commands, Limits::default()).await
}

pub(crate) async fn serve_within(policy: Option<SshPolicy>, commands: AllowedCommands, limits: Limits) -> Server {
    let policy: Policy = Arc::new(Mutex::new(policy));
    let seen = Arc::clone(&policy);
    let authorizer = move |peer: &Peer, user: &str| evaluate(seen.lock().unwrap().as_ref(), &peer.facts, user, 1000);
    let host_key = HostKey::generate(&mut rand::rng()).unwrap();
    let public = host_key.public_line().split(' ').nth(1).unwrap().to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("known_hosts"), format!("builder {}\n", host_key.public_line())).unwrap();
    let admission = AdmissionControl::new("builder", Arc::new(authorizer));
    let endpoint = Endpoint::new(EndpointConfig {
        host_key,
        admission: Arc::clone(&admission),
        commands,
        sessions: Default::default(),
        control: Arc::new(Verbs),
        limits,
    });
    let (sender, reports) = mpsc::unbounded_channel();
    let cancel = CancellationToken::new();
    let (serving, cancelled) = (endpoint, cancel.clone());
    tokio::spawn(async move {
        while let Ok((stream, source)) = listener.accept().await {
            stream.set_nodelay(true).unwrap();
            let facts = PrincipalFacts { addresses: vec!["100.64.0.7".parse().unwrap()], ..Default::default() };
            let peer = Peer { node_key: NodePublic::from_bytes([7; 32]), name: "coordinator".into(), facts, source };
            let (serving, sender, cancelled) = (Arc::clone(&serving), sender.clone(), cancelled.clone());
            tokio::spawn(async move {
                let _ = sender.send(serving.serve(stream, peer, cancelled).await);
            });
        }
    });
    Server { port, host_key: public, folder, admission, policy, reports, cancel }
}

impl Server {
    /// Our ssh_config, which is written once: other clients may be reading it.
    pub(crate) fn config(&self) -> PathBuf {
        let path = self.folder.path().join("ssh_config");
        if !path.exists() {
            let new = self.folder.path().join("ssh_config.new");
            std::fs::write(&new, self.config_text()).unwrap();
            std::fs::rename(new, &path).unwrap();
        }
        path
    }

    fn config_text(&self) -> String {
        format!(
            "Host builder\n  HostName 127.0.0.1\n  Port {}\n  User builder\n  HostKeyAlias builder\n  UserKnownHostsFile {}\n  \
             GlobalKnownHostsFile /dev/null\n  StrictHostKeyChecking yes\n  IdentityFile none\n  IdentitiesOnly yes\n  \
             KexAlgorithms curve25519-sha256\n  LogLevel INFO\n",
            self.port,
            self.folder.path().join("known_hosts").display()
        )
    }

    pub(crate) fn ssh(&self, options: &[&str], command: &str) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.arg("-F").arg(self.config()).args(options).arg("builder");
        if !command.is_empty() {
            ssh.arg(command);
        }
        ssh.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        ssh
    }

    pub(crate) async fn run(&self, options: &[&str], command: &str) -> (i32, String, String) {
        let output = within(PATIENCE, self.ssh(options, command).output()).await.unwrap();
        text(&output)
    }

    pub(crate) async fn report(&mut self) -> ConnectionReport {
        within(PATIENCE, self.reports.recv()).await.unwrap().unwrap()
    }
}

pub(crate) fn text(output: &Output) -> (i32, String, String) {
    let utf8 = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), utf8(&output.stdout), utf8(&output.stderr))
}

pub(crate) async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(limit, future).await.expect("took too long")
}

/// Processes whose command line holds `mark`, zombies left out.
pub(crate) fn processes(mark: &str) -> Vec<PathBuf> {
    let own = std::process::id().to_string();
    let is_marked = |path: &PathBuf| {
        let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
        !path.ends_with(&own) && String::from_utf8_lossy(&line).contains(mark)
    };
    std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path()).filter(is_marked).collect()
}

pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
