//! The command line's side of the local API. Blocking: a command makes one call and ends, and the stream that it may
//! get must be handed over byte-exact, without anything read ahead.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::SocketPath;
use crate::net::peer_user::peer_user;
use crate::report::{Exit, Failure, plain};

/// An answer's head is a few lines.
const MAX_HEAD: usize = 8 << 10;
/// A netmap of thousands of peers fits.
const MAX_BODY: usize = 64 << 20;
/// How many header lines an answer may have.
const MAX_HEADERS: usize = 32;

/// Calls the agent at a socket.
#[derive(Clone, Debug)]
pub struct Client {
    path: SocketPath,
}

impl Client {
    /// A client of the agent at `path`.
    pub fn new(path: SocketPath) -> Self {
        Self { path }
    }

    /// Asks for what a path has.
    ///
    /// # Errors
    /// No agent, an agent that says why not, or none within `deadline`.
    pub fn get<T: DeserializeOwned>(&self, path: &str, deadline: Duration) -> Result<T, Failure> {
        self.call("GET", path, &[], deadline)
    }

    /// Calls a verb with a JSON body.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        deadline: Duration,
    ) -> Result<T, Failure> {
        self.call("POST", path, &encode(body)?, deadline)
    }

    /// Calls a verb that turns the connection into a stream, and hands over exactly that stream.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn open(&self, path: &str, body: &impl Serialize, deadline: Duration) -> Result<UnixStream, Failure> {
        let extra = "Connection: upgrade\r\nUpgrade: nixtail-stream\r\n";
        let mut stream = self.send("POST", path, extra, &encode(body)?, deadline)?;
        let head = read_head(&mut stream).map_err(|error| self.broken(&error))?;
        if head.status != 101 {
            return Err(read_failure(&mut stream, &head).unwrap_or_else(|error| self.broken(&error)));
        }
        stream
            .set_read_timeout(None)
            .and_then(|()| stream.set_write_timeout(None))
            .map_err(|error| self.broken(&error))?;
        Ok(stream)
    }

    fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: &[u8],
        deadline: Duration,
    ) -> Result<T, Failure> {
        let mut stream = self.send(method, path, "Connection: close\r\n", body, deadline)?;
        let head = read_head(&mut stream).map_err(|error| self.broken(&error))?;
        if head.status != 200 {
            return Err(read_failure(&mut stream, &head).unwrap_or_else(|error| self.broken(&error)));
        }
        let body = read_body(&mut stream, &head).map_err(|error| self.broken(&error))?;
        serde_json::from_slice(&body).map_err(|error| {
            Failure::new(Exit::General, format!("the agent's answer isn't understood: {error}"))
                .next("the agent may be of another version: compare `nixtail version`, or restart it")
        })
    }

    fn send(
        &self,
        method: &str,
        path: &str,
        extra: &str,
        body: &[u8],
        deadline: Duration,
    ) -> Result<UnixStream, Failure> {
        let mut stream = UnixStream::connect(self.path.as_path()).map_err(|error| self.unreachable(&error))?;
        self.check_agent(&stream)?;
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: local\r\n{extra}Content-Length: {length}\r\n\r\n");
        let sent = stream
            .set_read_timeout(Some(deadline))
            .and_then(|()| stream.set_write_timeout(Some(deadline)))
            .and_then(|()| stream.write_all(&[head.as_bytes(), body].concat()));
        sent.map_err(|error| self.broken(&error))?;
        Ok(stream)
    }

    /// Who listens there learns what we ask for, and what it answers is believed: so not just anybody may.
    fn check_agent(&self, stream: &UnixStream) -> Result<(), Failure> {
        let agent = peer_user(stream).map_err(|error| self.broken(&error))?.as_raw();
        if is_trusted(agent, rustix::process::getuid().as_raw()) {
            return Ok(());
        }
        let path = self.path.as_path().display();
        Err(Failure::new(
            Exit::Refused,
            format!("the process that listens at {path} belongs to another user (uid {agent})"),
        )
        .next("run this as the user who started the agent, or name the socket of your own with --socket"))
    }

    fn unreachable(&self, error: &io::Error) -> Failure {
        let path = self.path.as_path().display();
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                Failure::new(Exit::Unavailable, format!("no agent runs at {path}"))
                    .next("start one with `nixtail up`, or name the socket of another with --socket")
            }
            io::ErrorKind::PermissionDenied => {
                Failure::new(Exit::Refused, format!("the agent at {path} belongs to another user"))
                    .next("run this as the user who started it, or as root")
            }
            _ => Failure::new(Exit::Unavailable, format!("the agent at {path} can't be reached: {error}")),
        }
    }

    fn broken(&self, error: &io::Error) -> Failure {
        let path = self.path.as_path().display();
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                Failure::new(Exit::Timeout, format!("the agent at {path} didn't answer in time"))
            }
            _ => Failure::new(Exit::Unavailable, format!("the agent at {path} broke the call off: {error}"))
                .next("it may just be stopping; its own log says why"),
        }
    }
}

struct Head {
    status: u16,
    length: Option<usize>,
}

#[derive(serde::Deserialize)]
struct Refusal {
    error: Failure,
}

/// Our own processes and root's are, and for root everyone's: it chose whom to ask.
pub(super) fn is_trusted(agent: u32, own: u32) -> bool {
    agent == own || agent == 0 || own == 0
}

fn encode(body: &impl Serialize) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(body)
        .map_err(|error| Failure::new(Exit::General, format!("the request can't be written: {error}")))
}

/// Reads up to the empty line and not a byte further: what follows it may belong to somebody else.
fn read_head(stream: &mut UnixStream) -> io::Result<Head> {
    let mut head = Vec::with_capacity(256);
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.extend_from_slice(&byte);
        if head.len() > MAX_HEAD {
            return Err(invalid("its answer's head is too long"));
        }
    }
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    response.parse(&head).map_err(|error| invalid(&format!("it doesn't speak HTTP: {error}")))?;
    let length = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    Ok(Head {
        status: response.code.unwrap_or_default(),
        length: length.and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok()),
    })
}

fn read_body(stream: &mut UnixStream, head: &Head) -> io::Result<Vec<u8>> {
    let length = head.length.ok_or_else(|| invalid("its answer doesn't say how long it is"))?;
    if length > MAX_BODY {
        return Err(invalid("its answer is too long"));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(body)
}

fn read_failure(stream: &mut UnixStream, head: &Head) -> io::Result<Failure> {
    let body = read_body(stream, head)?;
    let status = head.status;
    let refusal = serde_json::from_slice::<Refusal>(&body);
    Ok(refusal.map_or_else(
        |_| {
            Failure::new(
                Exit::General,
                format!("the agent answered {status}: {}", plain(&String::from_utf8_lossy(&body))),
            )
        },
        |refusal| refusal.error,
    ))
}

fn invalid(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message.to_owned())
}
