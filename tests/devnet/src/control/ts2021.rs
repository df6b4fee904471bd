//! The server's end of ts2021: the upgrade, the handshake, and the encrypted stream that HTTP/2 runs on.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use nixtail_proto::key::{MachinePrivate, MachinePublic, NodePrivate};
use nixtail_proto::noise::{self, Opener, Sealer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::error::ConnectionError;
use crate::http1;

/// The protocol that is upgraded to.
const PROTOCOL: &str = "tailscale-control-protocol";
/// Bytes read at a time, and most bytes sealed before they must be written.
const PIECE: usize = 16 << 10;

/// Who is at the other end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Client {
    pub(super) machine: MachinePublic,
    /// The capability version of its handshake.
    pub(super) version: u16,
}

/// Does the upgrade that `request` asks for. `None` when it was refused with an HTTP answer.
pub(super) async fn accept(
    mut stream: TcpStream,
    request: &http1::Request,
    key: &MachinePrivate,
    early_payload: bool,
) -> Result<Option<(NoiseStream, Client)>, ConnectionError> {
    let asked = request.header("upgrade").is_some_and(|protocol| protocol.eq_ignore_ascii_case(PROTOCOL));
    let initiation = request.header("x-tailscale-handshake").and_then(|text| BASE64_STANDARD.decode(text).ok());
    let (true, Some(initiation)) = (asked, initiation) else {
        let text = "missing or malformed Upgrade or X-Tailscale-Handshake header\n";
        http1::answer(&mut stream, "400 Bad Request", "text/plain", text).await?;
        return Ok(None);
    };
    // As Go's server: first the 101, then a look at the initiation.
    let upgraded = format!("HTTP/1.1 101 Switching Protocols\r\nUpgrade: {PROTOCOL}\r\nConnection: upgrade\r\n\r\n");
    http1::write(&mut stream, upgraded.as_bytes()).await?;

    let mut rng = crate::random::rng().map_err(ConnectionError::Random)?;
    let accepted = match noise::respond(key, &initiation, &mut rng) {
        Ok(accepted) => accepted,
        Err(error) => {
            let mut refusal = Vec::new();
            noise::write_error(&error.to_string(), &mut refusal);
            http1::write(&mut stream, &refusal).await?;
            return Err(error.into());
        }
    };
    let noise::Records { mut sealer, mut opener } = accepted.records;
    let mut answer = accepted.response.to_vec();
    if early_payload {
        let mut early = Vec::new();
        noise::write_early_payload(challenge(&mut rng).as_bytes(), &mut early);
        sealer.seal(&early, &mut answer)?;
    }
    http1::write(&mut stream, &answer).await?;

    let mut opened = Vec::new();
    opener.open(&request.rest, &mut opened)?;
    let client = Client { machine: accepted.machine, version: accepted.version };
    Ok(Some((NoiseStream::new(stream, sealer, opener, opened), client)))
}

/// The early payload: a challenge that nobody answers yet, in Go's clients neither.
fn challenge(rng: &mut dyn rand::CryptoRng) -> String {
    let public = NodePrivate::generate(rng).public().to_string();
    let hex = public.strip_prefix("nodekey:").unwrap_or_default();
    serde_json::json!({ "nodeKeyChallenge": format!("chalpub:{hex}") }).to_string()
}

/// A ts2021 connection after its handshake, as a byte stream.
pub(super) struct NoiseStream {
    stream: TcpStream,
    sealer: Sealer,
    opener: Opener,
    /// Decrypted bytes, and how many of them were read.
    opened: Vec<u8>,
    taken: usize,
    /// Encrypted bytes, and how many of them were written.
    sealed: Vec<u8>,
    written: usize,
}

impl NoiseStream {
    /// `opened` is what was decrypted already.
    pub(super) fn new(stream: TcpStream, sealer: Sealer, opener: Opener, opened: Vec<u8>) -> Self {
        Self { stream, sealer, opener, opened, taken: 0, sealed: Vec::new(), written: 0 }
    }

    fn poll_write_sealed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.sealed.get(self.written..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.written += n,
            }
        }
        self.sealed.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for NoiseStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if let Some(rest) = this.opened.get(this.taken..).filter(|rest| !rest.is_empty()) {
                let piece = rest.get(..out.remaining()).unwrap_or(rest);
                out.put_slice(piece);
                this.taken += piece.len();
                return Poll::Ready(Ok(()));
            }
            this.opened.clear();
            this.taken = 0;
            let mut piece = [0; PIECE];
            let mut piece = ReadBuf::new(&mut piece);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut piece))?;
            if piece.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.opener
                .open(piece.filled(), &mut this.opened)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
    }
}

impl AsyncWrite for NoiseStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_write_sealed(cx))?;
        let this = &mut *self;
        let piece = bytes.get(..PIECE).unwrap_or(bytes);
        this.sealer.seal(piece, &mut this.sealed).map_err(io::Error::other)?;
        // It is taken over; what can't be written now is written by the next call or the flush.
        match this.poll_write_sealed(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(piece.len())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_sealed(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_sealed(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
