//! From a transport to ts2021: an HTTP upgrade that carries the handshake.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nixtail_proto::http_head::HeadReader;
use nixtail_proto::key::{MachinePrivate, MachinePublic};
use nixtail_proto::noise::{HandshakeProgress, Initiator, Records};
use nixtail_proto::tailcfg::CAPABILITY_VERSION;
use rand::rngs::StdRng;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::control::ControlError;
use crate::control::server::{Server, refused_step};
use crate::control::stream::NoiseStream;

const PROTOCOL: &str = "tailscale-control-protocol";
/// Bytes that are read at once.
const READ: usize = 4096;

/// Upgrades a transport that leads to control whose key is `key`.
///
/// # Errors
/// [`ControlError::Handshake`] when control has another key, or won't have us; anything else is between us and control.
pub(super) async fn upgrade<T: AsyncRead + AsyncWrite + Unpin>(
    server: &Server,
    mut transport: T,
    machine: &MachinePrivate,
    key: &MachinePublic,
) -> Result<NoiseStream<T>, ControlError> {
    let failed = |error| ControlError::handshake(&server.authority(), error);
    let (initiator, initiation) =
        Initiator::new(CAPABILITY_VERSION, machine, key, &mut rand::make_rng::<StdRng>()).map_err(failed)?;
    let request = format!(
        "POST /ts2021 HTTP/1.1\r\nHost: {}\r\nUpgrade: {PROTOCOL}\r\nConnection: upgrade\r\n\
         X-Tailscale-Handshake: {}\r\nContent-Length: 0\r\n\r\n",
        server.authority(),
        STANDARD.encode(initiation)
    );
    let step = "the upgrade to ts2021";
    let asked = async {
        transport.write_all(request.as_bytes()).await.map_err(|source| server.network(step, source))?;
        transport.flush().await.map_err(|source| server.network(step, source))?;
        read_answer(server, &mut transport).await
    };
    let rest = server.within(step, server.patience, asked).await?;
    let step = "the handshake of ts2021";
    let records = server.within(step, server.patience, shake_hands(server, &mut transport, initiator, rest)).await?;
    NoiseStream::new(transport, records).map_err(ControlError::from)
}

/// Reads the answer to the upgrade. What comes back are the bytes behind it: they belong to the stream.
async fn read_answer(server: &Server, transport: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, ControlError> {
    let protocol = |why: String| ControlError::protocol(&server.authority(), why);
    let (mut reader, mut bytes) = (HeadReader::default(), Vec::with_capacity(READ));
    loop {
        bytes.clear();
        let got = transport.read_buf(&mut bytes).await;
        if got.map_err(|source| server.network("the upgrade to ts2021", source))? == 0 {
            return Err(protocol("it closed the connection instead of upgrading it".to_owned()));
        }
        let Some((head, rest)) = reader.handle_bytes(&bytes).map_err(|error| protocol(error.to_string()))? else {
            continue;
        };
        if head.status != 101 || head.upgrade.as_deref() != Some(PROTOCOL) {
            return Err(refused_step(&server.authority(), "the upgrade", head.status, None, &rest));
        }
        return Ok(rest);
    }
}

async fn shake_hands(
    server: &Server,
    transport: &mut (impl AsyncRead + Unpin),
    mut initiator: Initiator,
    mut bytes: Vec<u8>,
) -> Result<Records, ControlError> {
    loop {
        let progress = initiator.handle_bytes(&bytes);
        match progress.map_err(|error| ControlError::handshake(&server.authority(), error))? {
            HandshakeProgress::Done(records) => return Ok(records),
            HandshakeProgress::Waiting(waiting) => initiator = waiting,
        }
        bytes.clear();
        bytes.reserve(READ);
        // How a server that can't open our initiation ends it: with an end of the stream, or a reset.
        if !matches!(transport.read_buf(&mut bytes).await, Ok(1..)) {
            return Err(ControlError::handshake(&server.authority(), "it hung up"));
        }
    }
}
