//! The endpoint: its configuration, its connections, and how each of them ends.

use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use nixtail_proto::nix_command::ControlRequest;
use nixtail_proto::ssh_policy::AdmissionEnd;
use russh::{MethodKind, MethodSet, Preferred, SshId, cipher, compression, kex, mac};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::admission::{AdmissionControl, Peer};
use super::connection::Connection;
use super::flow::MemoryBudget;
use super::gated_stream::GatedStream;
use super::handler::ConnectionHandler;
use super::host_key::HostKey;
use crate::builder::sessions::Sessions;
use crate::nix::spawn::ChildSpec;

/// What the server calls itself. Clients of Tailscale SSH look for the word `Tailscale`.
const SERVER_ID: &str = "SSH-2.0-Tailscale-nixtail";

/// A session's first window. 8 MiB is 1 Gbit/s at a round trip of 66 ms.
const WINDOW: u32 = 8 * 1024 * 1024;

/// The longest packet that the client may send; russh warns above.
const PACKET: u32 = 65_535;

/// Sessions of one connection. Nix has one; an OpenSSH master may have some.
const SESSIONS: usize = 32;

/// What all connections may have queued for their children: 32 sessions whose children are all stuck, of any number.
const MEMORY: usize = 512 * 1024 * 1024;

/// The most that russh allows. AES-GCM would stand much more.
const REKEY_AFTER: usize = 1 << 30;

/// How long a client has to log in, as Go's.
const LOGIN_GRACE: Duration = Duration::from_secs(120);

/// Nothing heard for three of these is a dead client (45 s); a freeze of 30 s survives.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// How long a client has to take a farewell and close.
const CLOSE_GRACE: Duration = Duration::from_secs(2);

/// Messages between a session's pumps and russh: 64 KiB each at most.
const OUTPUT_MESSAGES: usize = 32;

/// Answers nixtail's own control verbs.
pub trait ControlVerbs: Send + Sync {
    /// Answers `request` of `peer`. Dropped when the client goes.
    fn answer(&self, peer: &Peer, request: ControlRequest) -> Pin<Box<dyn Future<Output = ControlReply> + Send + '_>>;

    /// What follows a good answer to a verb that goes on, as data, until the command ends. Dropped when the client goes.
    fn follow(self: Arc<Self>, _peer: &Peer, _request: &ControlRequest) -> Option<BoxStream<'static, Bytes>> {
        None
    }
}

/// The answer to a control verb.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ControlReply {
    /// Data.
    pub stdout: Vec<u8>,
    /// Words for people.
    pub stderr: String,
    /// As of a command.
    pub exit_code: u32,
}

/// The programs behind the commands that a client may run.
#[derive(Debug, Clone)]
pub struct AllowedCommands {
    /// `nix-daemon --stdio`, for the published store.
    pub daemon: ChildSpec,
    /// `nix-store --serve --write`, for the published store.
    pub serve: ChildSpec,
    /// The only store that a client may name with `--store`; `daemon` and `serve` use it in any case.
    pub published_store: Option<String>,
}

/// Bounds of an endpoint.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of a session's first window, and of the largest grant after it.
    pub window: u32,
    /// Sessions of one connection.
    pub sessions: usize,
    /// Bytes that all sessions may have queued for their children before reading rests.
    pub memory: usize,
    /// Bytes each way after which keys are exchanged anew, 1 GiB at most.
    pub rekey_after: usize,
    /// How long a client has to log in.
    pub login_grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { window: WINDOW, sessions: SESSIONS, memory: MEMORY, rekey_after: REKEY_AFTER, login_grace: LOGIN_GRACE }
    }
}

/// What an endpoint is made of.
pub struct EndpointConfig {
    /// Its key.
    pub host_key: HostKey,
    /// Who may come in, and as whom.
    pub admission: Arc<AdmissionControl>,
    /// What may be run.
    pub commands: AllowedCommands,
    /// Where the Nix sessions are told of, and may be refused for now.
    pub sessions: Arc<Sessions>,
    /// Answers `nixtail-control`.
    pub control: Arc<dyn ControlVerbs>,
    /// Bounds.
    pub limits: Limits,
}

/// Why serving a connection failed. How an orderly one ended is in [`ConnectionReport`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SshError {
    /// The peer's fault or the tunnel's: the SSH protocol broke.
    #[error("SSH connection failed: {0}")]
    Protocol(#[from] russh::Error),
    /// The peer's fault: more data than its window allows.
    #[error("SSH client sent more data than its window allows; it is broken or hostile")]
    WindowExceeded,
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectionEnd {
    /// The client closed it.
    Client,
    /// The client answered nothing, or took nothing, for so long that it counts as dead.
    Silent,
    /// The policy refused the peer; the words that it was told.
    Refused(String),
    /// The policy allows it no longer.
    Disallowed(AdmissionEnd),
    /// The client didn't log in in time.
    LoginTimeout,
    /// The caller ended it.
    Cancelled,
}

impl ConnectionEnd {
    /// What the client is told.
    pub(crate) fn farewell(&self) -> Cow<'_, str> {
        match self {
            Self::Client => "bye".into(),
            Self::Silent => "no answer".into(),
            // A banner has told why.
            Self::Refused(_) => "not allowed".into(),
            Self::Disallowed(end) => end.to_string().into(),
            Self::LoginTimeout => "login took too long".into(),
            Self::Cancelled => "this node is leaving".into(),
        }
    }
}

/// What became of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionReport {
    /// How it ended.
    pub end: ConnectionEnd,
    /// The user that was asked for and let in.
    pub user: Option<String>,
    /// Commands that were run, control verbs included.
    pub commands_run: usize,
    /// Commands that were refused.
    pub commands_refused: usize,
    /// Bytes from the client to children.
    pub bytes_in: u64,
    /// Bytes from children to the client, stderr included.
    pub bytes_out: u64,
    /// The most that one session's queue held, in bytes.
    pub highest_queued: usize,
    /// How often reading rested because a child took no input.
    pub reads_rested: usize,
}

/// Serves SSH on streams whose peers are known.
pub struct Endpoint {
    pub(crate) config: EndpointConfig,
    pub(crate) budget: Arc<MemoryBudget>,
    russh: Arc<russh::server::Config>,
}

impl Endpoint {
    /// An endpoint without connections.
    pub fn new(config: EndpointConfig) -> Arc<Self> {
        let russh = Arc::new(russh_config(&config));
        let budget = MemoryBudget::new(config.limits.memory);
        Arc::new(Self { config, budget, russh })
    }

    /// Serves one connection until it ends; when this returns, no child of it is left. `cancel` ends it with a farewell.
    ///
    /// Dropping the future instead kills the children without waiting for them.
    pub async fn serve<S>(
        self: &Arc<Self>,
        stream: S,
        peer: Peer,
        cancel: CancellationToken,
    ) -> Result<ConnectionReport, SshError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let connection = Arc::new(Connection::new(Arc::clone(self), peer));
        // Whatever way this function is left, children and the russh task end.
        let _abort = connection.abort.clone().drop_guard();

        let stream = GatedStream::new(stream, Arc::clone(&connection.gate), connection.abort.clone());
        let goodbye = stream.goodbye();
        let handler = ConnectionHandler::new(Arc::clone(&connection));
        let end = connection.wait_for_end(&cancel);
        tokio::pin!(end);
        let mut running = tokio::select! {
            started = russh::server::run_stream(Arc::clone(&self.russh), stream, handler) => started?,
            end = &mut end => return Ok(connection.report(end)),
        };
        let handle = running.handle();
        let result = tokio::select! {
            result = &mut running => result.map(|()| ConnectionEnd::Client),
            // One side has said goodbye, and russh waits for the client to close the stream, which it may never do.
            () = goodbye.cancelled() => {
                connection.end_sessions();
                if tokio::time::timeout(CLOSE_GRACE, &mut running).await.is_err() {
                    connection.abort.cancel();
                    let _ = running.await;
                }
                Ok(ConnectionEnd::Client)
            }
            end = &mut end => {
                connection.end_sessions();
                let farewell = async {
                    let text = end.farewell().into_owned();
                    let _ = handle.disconnect(russh::Disconnect::ByApplication, text, "en".into()).await;
                    let _ = (&mut running).await;
                };
                if tokio::time::timeout(CLOSE_GRACE, farewell).await.is_err() {
                    connection.abort.cancel();
                    let _ = running.await;
                }
                Ok(end)
            }
        };
        connection.end_sessions();
        connection.tasks.close();
        connection.tasks.wait().await;
        // A refusal that russh carried out by itself ends like the client's own close.
        let result = result.map(|end| connection.chosen_end().unwrap_or(end));
        match result {
            Ok(end) => Ok(connection.report(end)),
            // Clients that just go are the rule, not a fault.
            Err(SshError::Protocol(error)) => match client_end(&error) {
                Some(end) => Ok(connection.report(connection.chosen_end().unwrap_or(end))),
                None => Err(SshError::Protocol(error)),
            },
            Err(error) => Err(error),
        }
    }
}

/// How the client ended the connection, if that is what an error means.
fn client_end(error: &russh::Error) -> Option<ConnectionEnd> {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, TimedOut, UnexpectedEof};
    match error {
        russh::Error::HUP | russh::Error::Disconnect => Some(ConnectionEnd::Client),
        russh::Error::KeepaliveTimeout => Some(ConnectionEnd::Silent),
        russh::Error::IO(error) => match error.kind() {
            BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof => Some(ConnectionEnd::Client),
            TimedOut => Some(ConnectionEnd::Silent),
            _ => None,
        },
        _ => None,
    }
}

fn russh_config(config: &EndpointConfig) -> russh::server::Config {
    russh::server::Config {
        server_id: SshId::Standard(Cow::Borrowed(SERVER_ID)),
        methods: MethodSet::from([MethodKind::None, MethodKind::PublicKey, MethodKind::Password].as_slice()),
        // No secret is compared, so there is nothing to hide in time.
        auth_rejection_time: Duration::ZERO,
        keys: vec![config.host_key.private().clone()],
        limits: russh::Limits::new(
            config.limits.rekey_after.min(REKEY_AFTER),
            config.limits.rekey_after.min(REKEY_AFTER),
            Duration::from_secs(24 * 3600),
        ),
        window_size: config.limits.window,
        maximum_packet_size: PACKET,
        // The receiving halves of channels are dropped at once (see `handler`), so this is never filled.
        channel_buffer_size: 1,
        event_buffer_size: OUTPUT_MESSAGES,
        preferred: Preferred {
            kex: Cow::Borrowed(&[
                kex::CURVE25519,
                kex::CURVE25519_PRE_RFC_8731,
                kex::MLKEM768X25519_SHA256,
                kex::EXTENSION_SUPPORT_AS_SERVER,
                kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
            ]),
            key: Cow::Borrowed(&[russh::keys::Algorithm::Ed25519]),
            cipher: Cow::Borrowed(&[cipher::AES_128_GCM, cipher::AES_256_GCM, cipher::CHACHA20_POLY1305]),
            // Only for clients that name none with these ciphers, which need none.
            mac: Cow::Borrowed(&[mac::HMAC_SHA256_ETM, mac::HMAC_SHA256]),
            compression: Cow::Borrowed(&[compression::NONE]),
            ..Preferred::DEFAULT
        },
        max_auth_attempts: 3,
        // A long build says nothing for hours; keepalives find the dead.
        inactivity_timeout: None,
        keepalive_interval: Some(KEEPALIVE),
        keepalive_max: 2,
        ..russh::server::Config::default()
    }
}
