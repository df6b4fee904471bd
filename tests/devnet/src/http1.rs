//! As much of HTTP/1.1 (RFC 9112) as the first request of a connection needs: its head, and one answer.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::error::ConnectionError;
use crate::misbehaviour::Answer;

/// The longest request head.
const MAX_HEAD: usize = 16 << 10;
/// The longest request body.
const MAX_BODY: usize = 64 << 10;
/// Most header fields of a request.
const MAX_HEADERS: usize = 64;
/// How long a request head may take, and an answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// The head of a request.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) target: String,
    headers: Vec<(String, String)>,
    /// What came behind the head: it belongs to what the connection is upgraded to.
    pub(crate) rest: Vec<u8>,
}

impl Request {
    /// Reads the head of a connection's first request.
    pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Self, ConnectionError> {
        tokio::time::timeout(PATIENCE, Self::read_slowly(stream)).await?
    }

    /// Reads the body, whose length the head must tell.
    pub(crate) async fn read_body(&self, stream: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, ConnectionError> {
        let length = self.header("content-length").map_or(Ok(0), str::parse::<usize>);
        let length = length.map_err(|_| ConnectionError::Http("a Content-Length that is no number"))?;
        if length > MAX_BODY {
            return Err(ConnectionError::Http("a request body that is too long"));
        }
        let mut body = self.rest.clone();
        body.truncate(length);
        let begun = body.len();
        body.resize(length, 0);
        if let Some(missing) = body.get_mut(begun..) {
            tokio::time::timeout(PATIENCE, stream.read_exact(missing)).await??;
        }
        Ok(body)
    }

    async fn read_slowly(stream: &mut (impl AsyncRead + Unpin)) -> Result<Self, ConnectionError> {
        let mut buffer = Vec::new();
        loop {
            if let Some(request) = Self::parse(&buffer)? {
                return Ok(request);
            }
            if buffer.len() >= MAX_HEAD {
                return Err(ConnectionError::Http("a request head that is too long"));
            }
            let mut piece = [0; 4096];
            match stream.read(&mut piece).await? {
                0 => return Err(ConnectionError::Closed),
                n => buffer.extend_from_slice(piece.get(..n).unwrap_or_default()),
            }
        }
    }

    fn parse(buffer: &[u8]) -> Result<Option<Self>, ConnectionError> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        let parsed = request.parse(buffer).map_err(|_| ConnectionError::Http("a request that is not HTTP/1.1"))?;
        let httparse::Status::Complete(length) = parsed else { return Ok(None) };
        let headers = request
            .headers
            .iter()
            .map(|header| (header.name.to_owned(), String::from_utf8_lossy(header.value).trim().to_owned()))
            .collect();
        Ok(Some(Self {
            method: request.method.unwrap_or_default().to_owned(),
            target: request.path.unwrap_or_default().to_owned(),
            headers,
            rest: buffer.get(length..).unwrap_or_default().to_owned(),
        }))
    }

    /// The value of a header field.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The path without its query.
    pub(crate) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// The value of a query parameter, as it stands there.
    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        let (_, query) = self.target.split_once('?')?;
        query.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name).map(|(_, value)| value)
    }
}

/// Writes an answer and says that the connection ends with it.
pub(crate) async fn answer(
    stream: &mut (impl AsyncWrite + Unpin),
    status: &str,
    content_type: &str,
    body: &str,
) -> Result<(), ConnectionError> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    write(stream, head.as_bytes()).await?;
    tokio::time::timeout(PATIENCE, stream.shutdown()).await??;
    Ok(())
}

/// Sends an answer as it stands, and says that the connection ends with it.
pub(crate) async fn send(stream: &mut (impl AsyncWrite + Unpin), answer: &Answer) -> Result<(), ConnectionError> {
    let mut bytes = format!("HTTP/1.1 {} Told\r\nContent-Length: {}\r\n", answer.status, answer.body.len());
    for (name, value) in &answer.headers {
        bytes.push_str(&format!("{name}: {value}\r\n"));
    }
    bytes.push_str("Connection: close\r\n\r\n");
    write(stream, &[bytes.as_bytes(), &answer.body].concat()).await?;
    tokio::time::timeout(PATIENCE, stream.shutdown()).await??;
    Ok(())
}

/// Reads and forgets until the client closes.
pub(crate) async fn until_closed(stream: &mut (impl AsyncRead + Unpin)) -> Result<(), ConnectionError> {
    let mut piece = [0; 4096];
    while stream.read(&mut piece).await? > 0 {}
    Ok(())
}

/// Writes all of `bytes`, within [`PATIENCE`].
pub(crate) async fn write(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<(), ConnectionError> {
    tokio::time::timeout(PATIENCE, async {
        stream.write_all(bytes).await?;
        stream.flush().await
    })
    .await??;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_and_what_follows_it() {
        let bytes = b"POST /ts2021?v=113&x=1 HTTP/1.1\r\nHost: a\r\nUPGRADE:  derp \r\n\r\nrest";
        for cut in 0..bytes.len() - 4 {
            assert!(Request::parse(&bytes[..cut]).unwrap().is_none());
        }
        let request = Request::parse(bytes).unwrap().unwrap();
        assert_eq!((request.method.as_str(), request.path()), ("POST", "/ts2021"));
        assert_eq!((request.query("v"), request.query("y")), (Some("113"), None));
        assert_eq!((request.header("upgrade"), request.rest.as_slice()), (Some("derp"), &b"rest"[..]));
        assert!(Request::parse(b"\x16\x03\x01\x02").is_err());
    }
}
