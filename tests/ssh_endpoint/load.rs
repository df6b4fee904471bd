//! Many at once: sessions, connections, and readers that are stuck.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use nixtail::ssh::Limits;
use russh::ChannelMsg;
use russh::client::{Config, Handle, Handler, Msg};
use russh::keys::PublicKeyOrCertificate;

use crate::server::{
    DAEMON, PATIENCE, allow, commands, eventually, processes, serve, serve_within, shell, text, within,
};

/// russh as a client.
pub(crate) struct Client(Handle<AnyKey>);

struct AnyKey;

impl Handler for AnyKey {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(true)
    }
}

/// One command of a [`Client`].
pub(crate) struct Running(russh::Channel<Msg>);

impl Client {
    pub(crate) async fn connect(port: u16) -> Self {
        let connecting = russh::client::connect(Arc::new(Config::default()), ("127.0.0.1", port), AnyKey);
        let mut handle = within(PATIENCE, connecting).await.unwrap();
        assert!(within(PATIENCE, handle.authenticate_none("builder")).await.unwrap().success());
        Self(handle)
    }

    pub(crate) async fn run(&self, command: &str) -> Running {
        let channel = within(PATIENCE, self.0.channel_open_session()).await.unwrap();
        channel.exec(true, command).await.unwrap();
        Running(channel)
    }

    pub(crate) async fn say_goodbye(&self) {
        self.0.disconnect(russh::Disconnect::ByApplication, "", "").await.unwrap();
    }
}

impl Running {
    pub(crate) async fn signal(&self, signal: russh::Sig) -> Result<(), russh::Error> {
        self.0.signal(signal).await
    }

    /// Sends `line` and EOF.
    async fn finish(&self, line: &str) {
        self.0.data_bytes(line.as_bytes().to_vec()).await.unwrap();
        self.0.eof().await.unwrap();
    }

    /// What it printed, and its exit code.
    pub(crate) async fn end(&mut self) -> (String, Option<u32>) {
        let (mut out, mut code) = (String::new(), None);
        while let Some(message) = within(PATIENCE, self.0.wait()).await {
            match message {
                ChannelMsg::Data { data } => out.push_str(std::str::from_utf8(&data).unwrap()),
                ChannelMsg::ExitStatus { exit_status } => code = Some(exit_status),
                _ => {}
            }
        }
        (out, code)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_sessions_share_a_connection() {
    let mut server = serve(allow(|_| {}), commands(shell("cat; echo end"))).await;
    let socket = server.folder.path().join("master");
    let socket = socket.to_str().unwrap();
    let mut master = server.ssh(&["-M", "-N", "-S", socket], "").spawn().unwrap();
    eventually("no master", || std::fs::exists(socket).unwrap()).await;
    let mut clients = Vec::new();
    for n in 0..32 {
        let mut ssh = server.ssh(&["-S", socket], DAEMON);
        ssh.stdin(Stdio::piped());
        let mut child = ssh.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stdin, format!("{n}\n").as_bytes()).await.unwrap();
        clients.push((n, child, stdin));
    }
    eventually("32 children", || processes("cat; echo end").len() == 32).await;
    // One more than allowed: refused by the connection, so that ssh makes one of its own.
    let (_, _, err) = server.run(&["-S", socket], DAEMON).await;
    assert!(err.contains("Session open refused by peer"), "{err}");
    assert_eq!(server.report().await.commands_run, 1);
    for (n, child, stdin) in clients {
        drop(stdin);
        let (code, out, _) = text(&within(PATIENCE, child.wait_with_output()).await.unwrap());
        assert_eq!((code, out), (0, format!("{n}\nend\n")));
    }
    let (_, out, err) = server.run(&["-S", socket], DAEMON).await;
    assert_eq!((out.as_str(), err.as_str()), ("end\n", ""));
    master.kill().await.unwrap();
    assert_eq!(server.report().await.commands_run, 33);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn russh_has_32_sessions_on_a_connection_too() {
    let server = serve(allow(|_| {}), commands(shell("cat; : 32 by russh; exit 4"))).await;
    let client = Client::connect(server.port).await;
    let mut running = Vec::new();
    for _ in 0..32 {
        running.push(client.run(DAEMON).await);
    }
    eventually("32 children", || processes(": 32 by russh").len() == 32).await;
    assert!(client.0.channel_open_session().await.is_err(), "one more than allowed");
    for (number, running) in running.iter_mut().enumerate() {
        running.finish(&number.to_string()).await;
        assert_eq!(running.end().await, (number.to_string(), Some(4)));
    }
    assert_eq!(client.run(DAEMON).await.0.eof().await.ok(), Some(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_connections_each_have_their_child() {
    let mut server = serve(allow(|_| {}), commands(shell("cat; : one of 200"))).await;
    // Logins one after another in twenty lanes: both ends of all of them share this machine, and a login of more than 15 s
    // meets a keepalive, which russh as a client takes for a refusal.
    let lanes = Arc::new(tokio::sync::Semaphore::new(20));
    let connecting: Vec<_> = (0..200)
        .map(|_| {
            let (port, lanes) = (server.port, Arc::clone(&lanes));
            tokio::spawn(async move {
                let _lane = lanes.acquire().await.unwrap();
                let client = Client::connect(port).await;
                let running = client.run(DAEMON).await;
                (client, running)
            })
        })
        .collect();
    let mut clients = Vec::new();
    for task in connecting {
        clients.push(within(2 * PATIENCE, task).await.unwrap());
    }
    eventually("200 children", || processes(": one of 200").len() == 200).await;
    for (number, (client, running)) in clients.iter_mut().enumerate() {
        running.finish(&number.to_string()).await;
        assert_eq!(running.end().await, (number.to_string(), Some(0)));
        client.say_goodbye().await;
    }
    for _ in 0..200 {
        assert_eq!(server.report().await.commands_run, 1);
    }
    assert!(processes(": one of 200").is_empty());
}

/// So many clients send without end to children that take nothing; without the common budget they would fill 16 MiB each.
const STUCK: usize = 24;
const BUDGET: usize = 64 * 1024 * 1024;
const AS_ENDPOINT: &str = "NIXTAIL_TEST_AS_ENDPOINT";

/// In a process of its own, since memory is measured by process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stuck_children_cost_no_more_than_the_budget() {
    if std::env::var_os(AS_ENDPOINT).is_some() {
        return fill_up().await;
    }
    let own = std::env::current_exe().unwrap();
    let mut alone = tokio::process::Command::new(own);
    alone.args(["--exact", "load::stuck_children_cost_no_more_than_the_budget", "--nocapture"]).env(AS_ENDPOINT, "1");
    alone.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let (code, out, err) = text(&within(3 * PATIENCE, alone.output()).await.unwrap());
    println!("{out}");
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("grown by"), "{out}");
}

async fn fill_up() {
    let mark = format!("92{}", std::process::id());
    let limits = Limits { memory: BUDGET, ..Limits::default() };
    let mut server = serve_within(allow(|_| {}), commands(shell(&format!("exec sleep {mark}"))), limits).await;
    let before = resident_bytes();
    let mut clients = Vec::new();
    for _ in 0..STUCK {
        let mut ssh = server.ssh(&[], DAEMON);
        ssh.stdin(std::fs::File::open("/dev/zero").unwrap());
        clients.push(ssh.spawn().unwrap());
    }
    // Where everything is stuck, nothing comes any more. Those that rest for long end as silent; the others fill up then.
    let mut highest = 0;
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        highest = highest.max(resident_bytes());
    }
    let grown = highest.saturating_sub(before);
    println!("grown by {} MiB with {STUCK} stuck children and a budget of {} MiB", grown >> 20, BUDGET >> 20);
    assert!(grown > BUDGET / 2, "nothing was stuck: {} MiB", grown >> 20);
    // Beside the budget, each connection has buffers of its own: russh's for a packet or two each way.
    assert!(grown < BUDGET + STUCK * 3 * 1024 * 1024, "{} MiB", grown >> 20);
    // A new connection isn't shut out by theirs.
    let client = Client::connect(server.port).await;
    let running = client.run("nix-store --serve --write").await;
    running.0.eof().await.unwrap();
    assert_eq!({ running }.end().await, ("served\n".to_owned(), Some(0)));
    *server.policy.lock().unwrap() = None;
    server.admission.policy_changed();
    for _ in 0..=STUCK {
        server.report().await;
    }
    assert!(processes(&mark).is_empty());
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size()
}
