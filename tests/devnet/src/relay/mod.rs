//! The DERP relay: TLS, the upgrade, and packets from node to node (`tailscale/tailscale` `derp/derpserver`).
//!
//! It has no mesh and no WebSocket.

mod clients;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nixtail_proto::derp::{ClientInfo, Decoder, DerpError, Frame, PeerGoneReason, ServerInfo, write_recv_packet};
use nixtail_proto::key::{NodePrivate, NodePublic};
use rand::RngExt as _;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::clients::{Clients, Queue};
use crate::error::ConnectionError;
use crate::http1;

/// Most connections at a time; a node has one, and a few short ones to measure latency.
const MAX_CONNECTIONS: usize = 1024;
/// How long a node may take to say who it is, as on Go's relay.
const GREETING: Duration = Duration::from_secs(10);
/// A node that doesn't take what is written within this time is cut off, as on Go's relay.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// Seconds between keep-alives, somewhere in between, as on Go's relay.
const KEEP_ALIVE: std::ops::Range<u64> = 60..65;
/// Bytes that are read at a time.
const PIECE: usize = 64 << 10;
/// How many `PeerGone` (not here) a connection gets at once; then one a second, as on Go's relay.
const NOT_HERE_BURST: u32 = 3;

/// What has gone through a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RelayStats {
    /// Packets passed on: WireGuard's and disco's.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A relay.
pub(crate) struct Relay {
    key: NodePrivate,
    tls: TlsAcceptor,
    clients: Clients,
    /// Off: every connection is cut, and new ones at once.
    on: watch::Sender<bool>,
    packets: AtomicU64,
    bytes: AtomicU64,
}

impl Relay {
    pub(crate) fn new(key: NodePrivate, tls: Arc<rustls::ServerConfig>) -> Self {
        Self {
            key,
            tls: TlsAcceptor::from(tls),
            clients: Clients::default(),
            on: watch::Sender::new(true),
            packets: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    pub(crate) fn switch(&self, on: bool) {
        self.on.send_replace(on);
    }

    pub(crate) fn stats(&self) -> RelayStats {
        RelayStats { packets: self.packets.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }

    /// Serves until `stop`.
    pub(crate) async fn serve(self: Arc<Self>, listener: TcpListener, tasks: TaskTracker, stop: CancellationToken) {
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let (stream, from) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "devnet relay: cannot accept");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&room).try_acquire_owned() else { continue };
            let mut on = self.on.subscribe();
            if !*on.borrow() {
                continue;
            }
            let (relay, stop) = (Arc::clone(&self), stop.clone());
            tasks.spawn(async move {
                let ended = tokio::select! {
                    () = stop.cancelled() => return,
                    _ = on.wait_for(|on| !on) => return,
                    ended = relay.connection(stream) => ended,
                };
                if let Err(error) = ended {
                    tracing::debug!(%from, %error, "devnet relay: connection ended");
                }
                drop(permit);
            });
        }
    }

    async fn connection(&self, stream: TcpStream) -> Result<(), ConnectionError> {
        stream.set_nodelay(true)?;
        let mut stream = tokio::time::timeout(GREETING, self.tls.accept(stream)).await??;
        let request = http1::Request::read(&mut stream).await?;
        match (request.method.as_str(), request.path()) {
            ("GET", "/derp") => {
                if !request.header("upgrade").is_some_and(|protocol| protocol.eq_ignore_ascii_case("derp")) {
                    let text = "DERP requires a connection upgrade\n";
                    return http1::answer(&mut stream, "426 Upgrade Required", "text/plain", text).await;
                }
                // Whoever read our key from the certificates can do without the answer (`derp.FastStartHeader`).
                let is_fast = request.header("derp-fast-start") == Some("1");
                self.upgraded(stream, request.rest, is_fast).await
            }
            ("GET" | "HEAD", "/derp/probe" | "/derp/latency-check") => {
                http1::answer(&mut stream, "200 OK", "text/plain", "").await
            }
            ("GET" | "HEAD", "/generate_204") => http1::answer(&mut stream, "204 No Content", "text/plain", "").await,
            _ => {
                let text = "This is a nixtail devnet's DERP relay: only /derp is here.\n";
                http1::answer(&mut stream, "404 Not Found", "text/plain", text).await
            }
        }
    }

    async fn upgraded(
        &self,
        mut stream: impl AsyncRead + AsyncWrite + Unpin,
        rest: Vec<u8>,
        is_fast: bool,
    ) -> Result<(), ConnectionError> {
        let public = self.key.public();
        let mut greeting = Vec::new();
        if !is_fast {
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\nDerp-Version: {}\r\n\
                 Derp-Public-Key: {}\r\n\r\n",
                nixtail_proto::derp::PROTOCOL_VERSION,
                public.to_string().trim_start_matches(NodePublic::PREFIX),
            );
            greeting.extend_from_slice(answer.as_bytes());
        }
        Frame::ServerKey(public).write(&mut greeting)?;
        http1::write(&mut stream, &greeting).await?;

        let mut decoder = Decoder::new();
        decoder.unread().extend_from_slice(&rest);
        let client = tokio::time::timeout(GREETING, self.identify(&mut stream, &mut decoder)).await??;

        let queue = Arc::new(Queue::default());
        let mut info = Vec::new();
        let mut rng = crate::random::rng().map_err(ConnectionError::Random)?;
        ServerInfo::default().write(&self.key, &client, &mut rng, &mut info)?;
        queue.push_control(info);
        let pause = Duration::from_secs(rng.random_range(KEEP_ALIVE));

        let _entry = self.clients.enter(client, &queue);
        let (reader, writer) = tokio::io::split(stream);
        tokio::select! {
            ended = self.read_frames(reader, decoder, client, &queue) => ended,
            ended = write_frames(writer, &queue, pause) => ended,
        }
    }

    /// Waits for the node to say, and prove, who it is.
    async fn identify(
        &self,
        stream: &mut (impl AsyncRead + Unpin),
        decoder: &mut Decoder,
    ) -> Result<NodePublic, ConnectionError> {
        loop {
            if let Some(frame) = decoder.next_frame()? {
                let Frame::ClientInfo { key, sealed } = frame else { return Err(DerpError::Greeting.into()) };
                ClientInfo::open(sealed, &self.key, &key)?;
                return Ok(key);
            }
            read_more(stream, decoder).await?;
        }
    }

    async fn read_frames(
        &self,
        mut reader: impl AsyncRead + Unpin,
        mut decoder: Decoder,
        client: NodePublic,
        queue: &Queue,
    ) -> Result<(), ConnectionError> {
        let mut not_here = NotHere::new();
        loop {
            while let Some(frame) = decoder.next_frame()? {
                match frame {
                    Frame::SendPacket { to, packet } => {
                        let here = self.pass_on(client, to, packet)?;
                        if !here && not_here.may_tell(Instant::now()) {
                            push_frame(queue, Frame::PeerGone { peer: to, reason: PeerGoneReason::NotHere })?;
                        }
                    }
                    Frame::Ping(data) => push_frame(queue, Frame::Pong(data))?,
                    // What else a node may say is for statistics, or for relays among themselves.
                    _ => {}
                }
            }
            read_more(&mut reader, &mut decoder).await?;
        }
    }

    /// Whether `to` is here.
    fn pass_on(&self, from: NodePublic, to: NodePublic, packet: &[u8]) -> Result<bool, ConnectionError> {
        let Some(queue) = self.clients.find_for(to, from) else { return Ok(false) };
        let mut frame = Vec::with_capacity(packet.len() + 64);
        write_recv_packet(&from, packet, &mut frame)?;
        queue.push_packet(frame);
        self.packets.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(u64::try_from(packet.len()).unwrap_or(u64::MAX), Ordering::Relaxed);
        Ok(true)
    }
}

/// Writes what is queued, and keep-alives, until the queue is closed.
async fn write_frames(
    mut writer: impl AsyncWrite + Unpin,
    queue: &Queue,
    keep_alive: Duration,
) -> Result<(), ConnectionError> {
    let mut batch = Vec::new();
    loop {
        match tokio::time::timeout(keep_alive, queue.take(&mut batch)).await {
            Ok(true) => {}
            Ok(false) => return Err(ConnectionError::Replaced),
            Err(_) => Frame::KeepAlive.write(&mut batch)?,
        }
        tokio::time::timeout(WRITE_TIMEOUT, async {
            writer.write_all(&batch).await?;
            writer.flush().await
        })
        .await??;
        batch.clear();
    }
}

fn push_frame(queue: &Queue, frame: Frame<'_>) -> Result<(), ConnectionError> {
    let mut bytes = Vec::new();
    frame.write(&mut bytes)?;
    queue.push_control(bytes);
    Ok(())
}

async fn read_more(reader: &mut (impl AsyncRead + Unpin), decoder: &mut Decoder) -> Result<(), ConnectionError> {
    let buffer = decoder.unread();
    buffer.reserve(PIECE);
    match reader.read_buf(buffer).await? {
        0 => Err(ConnectionError::Closed),
        _ => Ok(()),
    }
}

/// How often a node is told that a peer isn't here.
struct NotHere {
    left: u32,
    told: Instant,
}

impl NotHere {
    fn new() -> Self {
        Self { left: NOT_HERE_BURST, told: Instant::now() }
    }

    fn may_tell(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.told) >= Duration::from_secs(1) {
            self.left = self.left.max(1);
        }
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        self.told = now;
        true
    }
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
