//! A ts2021 connection as a byte stream, for HTTP/2.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use nixtail_proto::noise::{EarlyPayload, NoiseError, Opener, Records, Sealer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that one `poll_write` takes at most, and so what can wait to be sent.
const WRITE: usize = 16 << 10;
/// Bytes that are read at once.
const READ: usize = 16 << 10;

/// Decrypts what is read and encrypts what is written.
pub(super) struct NoiseStream<T> {
    transport: T,
    sealer: Sealer,
    opener: Opener,
    early: EarlyPayload,
    /// Encrypted, to be written from `sealed_from` on.
    sealed: Vec<u8>,
    sealed_from: usize,
    /// Decrypted, to be read from `text_from` on.
    text: Vec<u8>,
    text_from: usize,
    buffer: Box<[u8]>,
}

impl<T> NoiseStream<T> {
    pub(super) fn new(transport: T, records: Records) -> Result<Self, NoiseError> {
        let Records { sealer, opener } = records;
        let mut stream = Self {
            transport,
            sealer,
            opener,
            early: EarlyPayload::default(),
            sealed: Vec::new(),
            sealed_from: 0,
            text: Vec::new(),
            text_from: 0,
            buffer: vec![0; READ].into_boxed_slice(),
        };
        // What came together with the handshake.
        stream.open(0)?;
        Ok(stream)
    }

    /// Decrypts the first `len` bytes of the buffer behind what is to be read.
    fn open(&mut self, len: usize) -> Result<(), NoiseError> {
        let mut opened = Vec::new();
        let result = self.opener.open(self.buffer.get(..len).unwrap_or_default(), &mut opened);
        self.early.handle_bytes(&opened, &mut self.text)?;
        result
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> NoiseStream<T> {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.sealed.get(self.sealed_from..).filter(|rest| !rest.is_empty()) {
            let written = ready!(Pin::new(&mut self.transport).poll_write(cx, rest))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sealed_from += written;
        }
        self.sealed.clear();
        self.sealed_from = 0;
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for NoiseStream<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            let rest = this.text.get(this.text_from..).unwrap_or_default();
            if !rest.is_empty() {
                let taken = rest.len().min(out.remaining());
                out.put_slice(rest.get(..taken).unwrap_or_default());
                this.text_from += taken;
                return Poll::Ready(Ok(()));
            }
            this.text.clear();
            this.text_from = 0;
            let mut read = ReadBuf::new(&mut this.buffer);
            ready!(Pin::new(&mut this.transport).poll_read(cx, &mut read))?;
            let len = read.filled().len();
            if len == 0 {
                return Poll::Ready(Ok(()));
            }
            this.open(len).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for NoiseStream<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(this.poll_drain(cx))?;
        let taken = bytes.get(..WRITE).unwrap_or(bytes);
        this.sealer.seal(taken, &mut this.sealed).map_err(io::Error::other)?;
        // They count as written: what doesn't go out now goes with the next write or flush.
        if let Poll::Ready(Err(error)) = this.poll_drain(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(taken.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.transport).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.transport).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use nixtail_proto::key::MachinePrivate;
    use nixtail_proto::noise::{HandshakeProgress, Initiator, respond, write_early_payload};
    use rand::rngs::StdRng;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn much_goes_both_ways_through_a_narrow_pipe() {
        let mut rng = rand::make_rng::<StdRng>();
        let (machine, control) = (MachinePrivate::generate(&mut rng), MachinePrivate::generate(&mut rng));
        let (initiator, initiation) = Initiator::new(113, &machine, &control.public(), &mut rng).unwrap();
        let mut accepted = respond(&control, &initiation, &mut rng).unwrap();
        let (near, mut far) = tokio::io::duplex(1000);
        let mut first = accepted.response.to_vec();
        let mut early = Vec::new();
        write_early_payload(b"{}", &mut early);
        accepted.records.sealer.seal(&early, &mut first).unwrap();
        accepted.records.sealer.seal(b"settings", &mut first).unwrap();
        let HandshakeProgress::Done(records) = initiator.handle_bytes(&first).unwrap() else { panic!() };
        let mut stream = NoiseStream::new(near, records).unwrap();

        let sent: Vec<u8> = (0..300_000_u32).map(|n| n.to_le_bytes()[1]).collect();
        let echo = tokio::spawn(async move {
            let (mut text, mut buffer) = (Vec::new(), vec![0; 700]);
            loop {
                let len = far.read(&mut buffer).await.unwrap();
                if len == 0 {
                    break;
                }
                accepted.records.opener.open(&buffer[..len], &mut text).unwrap();
            }
            text
        });
        let mut greeting = [0; 8];
        stream.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"settings");
        stream.write_all(&sent).await.unwrap();
        stream.shutdown().await.unwrap();
        assert!(echo.await.unwrap() == sent);
    }
}
