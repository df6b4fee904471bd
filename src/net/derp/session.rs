//! The life of a connection: dial, then read and write until one of them ends.

use std::sync::Arc;
use std::time::Duration;

use nixtail_proto::derp::{self, Decoder, Frame};
use nixtail_proto::key::NodePublic;
use nixtail_proto::packet::PacketBatch;
use nixtail_proto::tailcfg::RegionId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::dial::{Dialled, READ_LEN, Stream, dial};
use super::outbound::Outbound;
use super::{DerpConfig, DerpEvent, DerpEventKind, DerpFailure};

/// How long one write may take before the connection counts as dead. Go's relay gives its clients 2 s; a busy relay may
/// read us more slowly, on purpose even.
const WRITE_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the reader waits for room in the event channel, before it drops a batch: a relay cuts off who doesn't read
/// for 2 s.
const INBOUND_PATIENCE: Duration = Duration::from_millis(100);
/// How long nothing may come after our own ping, as magicsock has it after a change of the network.
const CHECK_TIMEOUT: Duration = Duration::from_secs(3);
/// How long TLS may take to say goodbye.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(500);

/// Dials, runs and reports, until the connection ends or is closed.
pub(super) async fn run(config: DerpConfig, outbound: Arc<Outbound>, events: mpsc::Sender<DerpEvent>) {
    let reporter = Reporter { region: config.region.region_id, connection: config.connection, events };
    let life = async {
        let Dialled { stream, mut decoder } = match dial(&config).await {
            Ok(dialled) => dialled,
            Err(failure) => return reporter.report(DerpEventKind::Disconnected(failure)).await,
        };
        reporter.report(DerpEventKind::Connected).await;
        let (mut reader, mut writer) = tokio::io::split(stream);
        let failure = tokio::select! {
            failure = read(&mut reader, &mut decoder, &outbound, &reporter) => Some(failure),
            failure = write(&mut writer, &outbound) => Some(failure),
            failure = check(&outbound) => Some(failure),
            () = outbound.closed() => None,
        };
        // Whether the goodbye arrives changes nothing.
        let _ = timeout(SHUTDOWN_TIMEOUT, writer.shutdown()).await;
        if let Some(failure) = failure {
            reporter.report(DerpEventKind::Disconnected(failure)).await;
        }
    };
    tokio::select! {
        () = life => {}
        () = wait_and_linger(&outbound) => {}
    }
}

/// Closing must not wait for a dial or for a full event channel, but leaves time for the goodbye.
async fn wait_and_linger(outbound: &Outbound) {
    outbound.closed().await;
    tokio::time::sleep(SHUTDOWN_TIMEOUT).await;
}

/// Reads frames until something fails.
async fn read(
    stream: &mut ReadHalf<Stream>,
    decoder: &mut Decoder,
    outbound: &Outbound,
    reporter: &Reporter,
) -> DerpFailure {
    loop {
        // First what came with the greetings.
        if let Err(failure) = handle_frames(decoder, outbound, reporter).await {
            return failure;
        }
        let unread = decoder.unread();
        unread.reserve(READ_LEN);
        match timeout(derp::READ_TIMEOUT, stream.read_buf(unread)).await {
            Ok(Ok(0)) => return DerpFailure::Closed,
            // Whatever it is: behind a full send buffer our question may stand for longer than its answer may take.
            Ok(Ok(_)) => outbound.handle_sign_of_life(),
            Ok(Err(error)) => return error.into(),
            Err(_) => return DerpFailure::Silent,
        }
    }
}

/// Deals with the frames that were read: packets in one batch, what else there is in its order among them.
async fn handle_frames(decoder: &mut Decoder, outbound: &Outbound, reporter: &Reporter) -> Result<(), DerpFailure> {
    let mut packets = PacketBatch::new();
    loop {
        let event = match decoder.next_frame()? {
            None => break,
            Some(Frame::RecvPacket { from, packet }) => {
                packets.push_slice(from, packet);
                continue;
            }
            Some(Frame::Ping(data)) => {
                outbound.push_pong(data);
                continue;
            }
            Some(Frame::PeerGone { peer, reason }) => DerpEventKind::PeerGone { peer, reason },
            Some(Frame::Health(problem)) => DerpEventKind::Health(derp::health_text(problem)),
            Some(Frame::Restarting { reconnect_in, try_for }) => DerpEventKind::Restarting { reconnect_in, try_for },
            // Keep-alives and pongs have done their work by being read; the rest isn't for nodes.
            Some(_) => continue,
        };
        deliver(std::mem::take(&mut packets), outbound, reporter).await;
        reporter.try_report(event).await;
    }
    deliver(packets, outbound, reporter).await;
    Ok(())
}

async fn deliver(packets: PacketBatch<NodePublic>, outbound: &Outbound, reporter: &Reporter) {
    let count = packets.len();
    if count > 0 {
        let taken = reporter.try_report(DerpEventKind::Packets(packets)).await;
        outbound.count_received(count, !taken);
    }
}

/// Writes what is queued until something fails.
async fn write(stream: &mut WriteHalf<Stream>, outbound: &Outbound) -> DerpFailure {
    let mut buffer = Vec::new();
    loop {
        buffer.clear();
        outbound.take(&mut buffer).await;
        let write = async {
            stream.write_all(&buffer).await?;
            stream.flush().await
        };
        match timeout(WRITE_TIMEOUT, write).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error.into(),
            Err(_) => return DerpFailure::TooSlow { step: "taking packets" },
        }
    }
}

/// Asks for a sign of life whenever one is wanted, until none comes.
async fn check(outbound: &Outbound) -> DerpFailure {
    loop {
        outbound.check_wanted().await;
        if timeout(CHECK_TIMEOUT, outbound.ping()).await.is_err() {
            return DerpFailure::Unanswered;
        }
    }
}

/// Tells events of one connection.
struct Reporter {
    region: RegionId,
    connection: u64,
    events: mpsc::Sender<DerpEvent>,
}

impl Reporter {
    /// Waits until the event is in the channel. When nobody listens any more, nobody misses it.
    async fn report(&self, kind: DerpEventKind) {
        let _ = self.events.send(self.event(kind)).await;
    }

    /// Waits for [`INBOUND_PATIENCE`] at most. Says whether the event is in the channel.
    async fn try_report(&self, kind: DerpEventKind) -> bool {
        matches!(timeout(INBOUND_PATIENCE, self.events.send(self.event(kind))).await, Ok(Ok(())))
    }

    fn event(&self, kind: DerpEventKind) -> DerpEvent {
        DerpEvent { region: self.region, connection: self.connection, kind }
    }
}
