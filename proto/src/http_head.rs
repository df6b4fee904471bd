//! The head of an HTTP/1.1 answer, read as it comes: to the upgrade to ts2021, to the one to DERP, to a proxy's `CONNECT`.
//!
//! The bytes behind the head belong to what was asked for, and are given back: control sends its side of the handshake, and
//! more, in the same segment.

/// Bytes of a head at most.
pub const MAX_HEAD: usize = 8 << 10;
/// Headers in it at most.
const MAX_HEADERS: usize = 64;

/// What an answer's head says, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponseHead {
    /// The status code.
    pub status: u16,
    /// The protocol that the connection was upgraded to, in small letters.
    pub upgrade: Option<String>,
}

/// Why an answer has no head that can be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeadError {
    /// It isn't HTTP/1.
    #[error("it doesn't speak HTTP ({0})")]
    NotHttp(httparse::Error),
    /// It is longer than [`MAX_HEAD`].
    #[error("its header is too long")]
    TooLong,
}

/// Reads one head out of bytes that are cut anywhere.
#[derive(Debug, Default)]
pub struct HeadReader {
    bytes: Vec<u8>,
}

impl HeadReader {
    /// Takes bytes as they came. Once the head is whole, gives it and what followed it.
    ///
    /// # Errors
    /// As soon as it is clear that no head can come of it.
    pub fn handle_bytes(&mut self, bytes: &[u8]) -> Result<Option<(ResponseHead, Vec<u8>)>, HeadError> {
        self.bytes.extend_from_slice(bytes);
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        match response.parse(&self.bytes).map_err(HeadError::NotHttp)? {
            httparse::Status::Complete(len) if len <= MAX_HEAD => {
                let upgrade = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("upgrade"));
                let upgrade = upgrade.map(|header| String::from_utf8_lossy(header.value).trim().to_ascii_lowercase());
                let head = ResponseHead { status: response.code.unwrap_or_default(), upgrade };
                let rest = self.bytes.split_off(len);
                self.bytes.clear();
                Ok(Some((head, rest)))
            }
            httparse::Status::Partial if self.bytes.len() <= MAX_HEAD => Ok(None),
            _ => Err(HeadError::TooLong),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &[u8] =
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: Tailscale-Control-Protocol\r\nConnection: upgrade\r\n\r\n";

    #[test]
    fn bytes_behind_the_head_are_kept() {
        let stream = [GOOD, b"\x02\0\x30rest"].concat();
        let head = ResponseHead { status: 101, upgrade: Some("tailscale-control-protocol".to_owned()) };
        for cut in 0..stream.len() {
            let (first, second) = stream.split_at(cut);
            let mut reader = HeadReader::default();
            let read = match reader.handle_bytes(first).unwrap() {
                Some((read, rest)) => (read, [&rest, second].concat()),
                None => reader.handle_bytes(second).unwrap().unwrap(),
            };
            assert_eq!(read, (head.clone(), b"\x02\0\x30rest".to_vec()), "cut at {cut}");
        }
    }

    #[test]
    fn what_is_no_head_is_refused() {
        let read = |bytes: &[u8]| HeadReader::default().handle_bytes(bytes);
        assert!(matches!(read(b"\x16\x03\x01"), Err(HeadError::NotHttp(_))));
        assert!(matches!(read(b"SSH-2.0-x\r\n"), Err(HeadError::NotHttp(_))));
        let endless = [b"HTTP/1.1 200 OK\r\nx: ".to_vec(), vec![b'y'; MAX_HEAD]].concat();
        assert_eq!(read(&endless), Err(HeadError::TooLong));
        assert_eq!(read(&[endless, b"\r\n\r\n".to_vec()].concat()), Err(HeadError::TooLong));
        let many = [b"HTTP/1.1 200 OK\r\n".to_vec(), b"x: y\r\n".repeat(MAX_HEADERS + 1)].concat();
        assert!(matches!(read(&many), Err(HeadError::NotHttp(httparse::Error::TooManyHeaders))));
        assert_eq!(read(b""), Ok(None));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_head_or_an_error(bytes: Vec<u8>, cut: prop::sample::Index) {
            let (first, second) = bytes.split_at(cut.index(bytes.len() + 1));
            let mut reader = HeadReader::default();
            if let Ok(None) = reader.handle_bytes(first) {
                let _ = reader.handle_bytes(second);
            }
        }
    }
}
