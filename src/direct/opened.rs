//! A connection of which the first bytes were read to see what it speaks.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use nixtail_proto::direct::{Protocol, protocol_of};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

/// How long a client may say nothing before it gets an SSH server: some wait for the server's identification.
const SILENCE: Duration = Duration::from_millis(250);

/// How long the rest of a word may take that may yet become a request of the direct lane.
const FIRST_WORD: Duration = Duration::from_secs(10);

/// The most that is read ahead: a request and the first bytes of Nix's greeting are far below.
const READ_AHEAD: usize = 8 * 1024;

/// A stream whose first bytes are read again.
#[derive(Debug)]
pub struct Opened<S> {
    stream: S,
    first: Vec<u8>,
    /// How many of them were read again.
    taken: usize,
}

/// Waits for a client's first bytes and tells what it speaks. Who is silent, who stops in mid-word and who ends at once is
/// taken for an SSH client.
///
/// # Errors
/// When the stream breaks.
pub async fn open<S: AsyncRead + Unpin>(mut stream: S) -> io::Result<(Protocol, Opened<S>)> {
    let mut first = Vec::new();
    let told = loop {
        let patience = if first.is_empty() { SILENCE } else { FIRST_WORD };
        let mut bounded = (&mut stream).take(READ_AHEAD as u64);
        let Ok(read) = tokio::time::timeout(patience, bounded.read_buf(&mut first)).await else { break Protocol::Ssh };
        if read? == 0 {
            break Protocol::Ssh;
        }
        if let Some(told) = protocol_of(&first) {
            break told;
        }
    };
    Ok((told, Opened { stream, first, taken: 0 }))
}

impl<S> Opened<S> {
    /// The stream itself. Bytes that were read ahead and not again are lost.
    pub fn into_inner(self) -> S {
        self.stream
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Opened<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let first = this.first.get(this.taken..).unwrap_or_default();
        if first.is_empty() {
            return Pin::new(&mut this.stream).poll_read(cx, buf);
        }
        let length = first.len().min(buf.remaining());
        buf.put_slice(first.get(..length).unwrap_or_default());
        this.taken += length;
        if this.taken == this.first.len() {
            (this.first, this.taken) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Opened<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    async fn opened(pieces: &[&str]) -> (Protocol, String) {
        let (mut client, server) = tokio::io::duplex(1024);
        let pieces: Vec<String> = pieces.iter().map(|piece| (*piece).to_owned()).collect();
        let client = tokio::spawn(async move {
            for piece in pieces {
                client.write_all(piece.as_bytes()).await.unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            client.shutdown().await.unwrap();
            client
        });
        let (told, mut opened) = open(server).await.unwrap();
        let mut all = String::new();
        opened.read_to_string(&mut all).await.unwrap();
        drop(client.await.unwrap());
        (told, all)
    }

    #[tokio::test]
    async fn nothing_is_lost_of_what_was_read_to_tell_the_protocol() {
        for (pieces, told) in [
            (&["SSH-2.0-x\r\n", "more"][..], Protocol::Ssh),
            (&["nixtail-direct 1 bob nix-daemon --stdio\nxyz", "more"], Protocol::Direct),
            (&["nix", "tail-dir", "ect 1 bob x\n"], Protocol::Direct),
            (&["nixtail"], Protocol::Ssh),
            (&[], Protocol::Ssh),
        ] {
            assert_eq!(opened(pieces).await, (told, pieces.concat()), "{pieces:?}");
        }
    }

    #[tokio::test]
    async fn a_silent_client_is_taken_for_ssh_soon() {
        let (mut client, server) = tokio::io::duplex(1024);
        let (told, mut server) = tokio::time::timeout(Duration::from_secs(60), open(server)).await.unwrap().unwrap();
        assert_eq!(told, Protocol::Ssh);
        server.write_all(b"SSH-2.0-us\r\n").await.unwrap();
        let mut answer = [0; 4];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"SSH-");
    }
}
