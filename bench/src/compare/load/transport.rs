//! How an end dials and is dialled: with the kernel's TCP, or inside of a tunnel of ours.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nixtail::agent::{Agent, Path, PingKind, Stream};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::words::Destination;

/// How long one answer of a peer is waited for.
const PING: Duration = Duration::from_secs(1);

/// A connection that can be ended at once: what is still under way is no part of the next measurement.
pub(super) trait Connection: AsyncRead + AsyncWrite + Unpin + Send + Sync + 'static {
    /// Ends it by a RST.
    fn abort(self);
}

/// Whose TCP it is.
pub(super) trait Transport: Clone + Send + Sync + 'static {
    type Connection: Connection;

    /// Opens a connection.
    fn dial(&self, to: &Destination) -> impl Future<Output = io::Result<Self::Connection>> + Send;

    /// Whether a peer is reached directly.
    fn is_direct(&self, peer: IpAddr) -> impl Future<Output = io::Result<bool>> + Send;
}

/// The kernel's TCP.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kernel;

impl Connection for TcpStream {
    fn abort(self) {
        // Without it, it closes in the usual way, and that is all.
        let _ = self.set_zero_linger();
    }
}

impl Transport for Kernel {
    type Connection = TcpStream;

    async fn dial(&self, to: &Destination) -> io::Result<TcpStream> {
        let address: SocketAddr = parsed(&to.to)?;
        let mut stream = TcpStream::connect(to.through.as_deref().unwrap_or(&to.to)).await?;
        stream.set_nodelay(true)?;
        if to.through.is_some() {
            ask_proxy(&mut stream, address).await?;
        }
        Ok(stream)
    }

    async fn is_direct(&self, _: IpAddr) -> io::Result<bool> {
        Ok(true)
    }
}

/// Asks a SOCKS5 proxy (RFC 1928) for a connection; it wants no login.
async fn ask_proxy(stream: &mut TcpStream, to: SocketAddr) -> io::Result<()> {
    let refused = |why: String| io::Error::new(io::ErrorKind::ConnectionRefused, why);
    stream.write_all(&[5, 1, 0]).await?;
    let mut method = [0; 2];
    stream.read_exact(&mut method).await?;
    if method != [5, 0] {
        return Err(refused(format!("the SOCKS5 proxy wants a login ({method:?})")));
    }
    let mut request = vec![5, 1, 0];
    match to.ip() {
        IpAddr::V4(address) => request.extend([&[1][..], &address.octets()].concat()),
        IpAddr::V6(address) => request.extend([&[4][..], &address.octets()].concat()),
    }
    request.extend(to.port().to_be_bytes());
    stream.write_all(&request).await?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await?;
    if answer[1] != 0 {
        return Err(refused(format!("the SOCKS5 proxy refuses with code {}", answer[1])));
    }
    // The address that it dialled from, and the port.
    let rest = match answer[3] {
        1 => 4 + 2,
        4 => 16 + 2,
        kind => return Err(refused(format!("the SOCKS5 proxy has an address of kind {kind}"))),
    };
    stream.read_exact(&mut [0; 18][..rest]).await.map(drop)
}

impl Connection for Stream {
    fn abort(self) {
        Self::abort(self);
    }
}

impl Transport for Agent {
    type Connection = Stream;

    async fn dial(&self, to: &Destination) -> io::Result<Stream> {
        let address: SocketAddr = parsed(&to.to)?;
        Self::dial(self, &address.ip().to_string(), address.port()).await.map_err(io::Error::other)
    }

    async fn is_direct(&self, peer: IpAddr) -> io::Result<bool> {
        let pong = self.ping(&peer.to_string(), PingKind::Disco, PING).await.map_err(io::Error::other)?;
        Ok(matches!(pong.path, Path::Direct { .. }))
    }
}

fn parsed(address: &str) -> io::Result<SocketAddr> {
    let wrong = |error| io::Error::new(io::ErrorKind::InvalidInput, format!("{address}: {error}"));
    address.parse().map_err(wrong)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// A proxy that reads what is asked of it and answers with this code.
    async fn asked(code: u8) -> (io::Result<()>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = listener.local_addr().unwrap();
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut hello = [0; 3];
            stream.read_exact(&mut hello).await.unwrap();
            stream.write_all(&[5, 0]).await.unwrap();
            let mut request = vec![0; 10];
            stream.read_exact(&mut request).await.unwrap();
            stream.write_all(&[5, code, 0, 1, 0, 0, 0, 0, 0, 0]).await.unwrap();
            request
        });
        let mut stream = TcpStream::connect(proxy).await.unwrap();
        let answer = ask_proxy(&mut stream, "100.64.0.2:5201".parse().unwrap()).await;
        (answer, served.await.unwrap())
    }

    #[tokio::test]
    async fn a_proxy_is_asked_by_rfc_1928() {
        let (answer, request) = asked(0).await;
        answer.unwrap();
        assert_eq!(request, [5, 1, 0, 1, 100, 64, 0, 2, 0x14, 0x51]);
        assert_eq!(asked(5).await.0.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
