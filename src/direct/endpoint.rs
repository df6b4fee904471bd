//! The builder's end of the lane: one request a connection, one program behind it.

use std::fmt;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use nixtail_proto::direct::{MAX_REQUEST, Output, RefusalKind, Request, RequestError};
use nixtail_proto::nix_command::{CommandRefusal, ControlRequest, NixCommand, Shown, parse_command};
use nixtail_proto::ssh_policy::AdmissionEnd;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use super::outlet::Outlet;
use crate::builder::sessions::{Lane, Session as NixSession, Sessions};
use crate::nix::spawn::{ChildSpec, GroupChild, TERMINATE_GRACE, exit_code};
use crate::ssh::{Admission, AdmissionControl, AllowedCommands, ControlVerbs, Peer};

/// How long a client has to send its one line, which comes with the first packet.
const REQUEST_DEADLINE: Duration = Duration::from_secs(20);

/// How long the daemon may take to take a connection: it forks for each.
const DAEMON_DEADLINE: Duration = Duration::from_secs(5);

/// How long a client has to take the last frame.
const FAREWELL: Duration = Duration::from_secs(2);

/// Bytes moved at once towards the program: one chunk of a tunnel's stream.
const INPUT_CHUNK: usize = 64 * 1024;

/// The exit code of a session that was ended from outside, as of a command that a signal ended.
const EXIT_ENDED: u32 = 128 + 15;

/// The exit code of a session whose Nix doesn't answer: trying again later, or elsewhere, may help.
const EXIT_NOT_NOW: u32 = 75;

/// The exit code of a session that the policy ended.
const EXIT_DISALLOWED: u32 = 77;

/// Serves the direct lane on streams whose peers are known. Who may come in and what may run is the same as over SSH.
pub struct DirectEndpoint {
    /// Who may come in, and as whom; SSH's too.
    pub admission: Arc<AdmissionControl>,
    /// What may be run.
    pub commands: AllowedCommands,
    /// The socket of the system's daemon, where it stands for `nix-daemon --stdio`: that would only pass bytes on to it, or
    /// open the same store.
    pub daemon_socket: Option<PathBuf>,
    /// Where the Nix sessions are told of, and may be refused for now.
    pub sessions: Arc<Sessions>,
    /// How long Nix may leave a client that said something without a byte:
    /// [`ANSWER_DEADLINE`](crate::builder::sessions::ANSWER_DEADLINE).
    pub answer_deadline: Duration,
    /// Answers `nixtail-control`.
    pub control: Arc<dyn ControlVerbs>,
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionEnd {
    /// The program ended, with this exit code.
    Finished(u32),
    /// It was turned away; the words that the client was told.
    Refused(RefusalKind, String),
    /// The client went.
    Client,
    /// The policy allows it no longer.
    Disallowed(AdmissionEnd),
    /// Nix said nothing to a client that did; the words that the client was told.
    Unanswered(String),
    /// The caller ended it.
    Cancelled,
}

impl fmt::Display for SessionEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Finished(code) => write!(f, "exit code {code}"),
            Self::Refused(kind, words) => write!(f, "{kind}: {words}"),
            Self::Client => f.write_str("its client went"),
            Self::Disallowed(end) => end.fmt(f),
            Self::Unanswered(words) => f.write_str(words),
            Self::Cancelled => f.write_str("the builder is ending"),
        }
    }
}

/// What became of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionReport {
    /// How it ended.
    pub end: SessionEnd,
    /// What was asked for, fit to show.
    pub command: String,
    /// Bytes from the client to the program.
    pub bytes_in: u64,
    /// Bytes from the program to the client, stderr included.
    pub bytes_out: u64,
}

impl DirectEndpoint {
    /// Serves one session until it ends; when this returns, no child of it is left. `cancel` ends it with a last word.
    ///
    /// Dropping the future instead kills the child without waiting for it.
    pub async fn serve<S>(&self, stream: S, peer: Peer, cancel: &CancellationToken) -> SessionReport
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let (reader, writer) = tokio::io::split(stream);
        let mut session = Session {
            endpoint: self,
            admission: self.admission.begin(peer),
            cancel,
            outlet: Outlet::new(writer),
            inlet: Inlet { reader, first: Vec::new(), received: 0 },
            command: String::new(),
        };
        let end = match session.begin().await {
            Ok(work) => session.work(work).await,
            Err(end) => end,
        };
        if let SessionEnd::Refused(kind, words) = &end {
            let told = session.outlet.refuse(*kind, words);
            // A client that doesn't take a line isn't waited for.
            let _ = tokio::time::timeout(FAREWELL, told).await;
        }
        let Session { outlet, inlet, command, .. } = session;
        SessionReport { end, command, bytes_in: inlet.received, bytes_out: outlet.sent() }
    }
}

/// What a session does.
enum Work {
    Control(ControlRequest),
    Nix(NixWork),
}

/// What a Nix session goes on with.
enum NixWork {
    /// The system's daemon, connected.
    Daemon(UnixStream),
    Child(ChildSpec),
}

struct Session<'a, R, W> {
    endpoint: &'a DirectEndpoint,
    admission: Arc<Admission>,
    cancel: &'a CancellationToken,
    outlet: Outlet<W>,
    inlet: Inlet<R>,
    command: String,
}

/// The client's side of a session: what it sent behind its request, and what still comes.
struct Inlet<R> {
    reader: R,
    first: Vec<u8>,
    /// Bytes that went to the program.
    received: u64,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Session<'_, R, W> {
    /// Reads the request, lets the peer in, and finds what is to be done.
    async fn begin(&mut self) -> Result<Work, SessionEnd> {
        let refused = |kind, words: &dyn fmt::Display| SessionEnd::Refused(kind, words.to_string());
        let read = tokio::select! {
            read = tokio::time::timeout(REQUEST_DEADLINE, self.inlet.request()) => read,
            () = self.cancel.cancelled() => return Err(refused(RefusalKind::Busy, &"the builder is ending")),
        };
        let request = match read {
            Err(_) => return Err(refused(RefusalKind::Protocol, &"no request came in time")),
            Ok(Err(RequestFailure::Gone)) => return Err(SessionEnd::Client),
            Ok(Err(RequestFailure::Unreadable(error))) => return Err(refused(RefusalKind::Protocol, &error)),
            Ok(Ok(request)) => request,
        };
        self.command = Shown::new(request.command()).to_string();
        if let Err(rejection) = self.admission.log_in(request.login()) {
            return Err(refused(RefusalKind::Policy, &rejection));
        }
        let commands = &self.endpoint.commands;
        let command = parse_command(request.command().as_bytes(), commands.published_store.as_deref());
        match command.map_err(|refusal: CommandRefusal| refused(RefusalKind::Command, &refusal))? {
            NixCommand::Control(request) => Ok(Work::Control(request)),
            NixCommand::Serve { store: _ } => Ok(Work::Nix(NixWork::Child(commands.serve.clone()))),
            NixCommand::Daemon { process_ops: false, store: None } if self.endpoint.daemon_socket.is_some() => {
                Ok(Work::Nix(self.daemon().await))
            }
            NixCommand::Daemon { process_ops, store: _ } => {
                let mut spec = commands.daemon.clone();
                if process_ops {
                    spec.arguments.push("--process-ops".into());
                }
                Ok(Work::Nix(NixWork::Child(spec)))
            }
        }
    }

    /// The system's daemon; where it takes nobody, the program that would tell why.
    async fn daemon(&self) -> NixWork {
        let socket = self.endpoint.daemon_socket.as_deref().unwrap_or_else(|| std::path::Path::new(""));
        match tokio::time::timeout(DAEMON_DEADLINE, UnixStream::connect(socket)).await {
            Ok(Ok(stream)) => NixWork::Daemon(stream),
            failed => {
                tracing::warn!(socket = %socket.display(), ?failed, "the Nix daemon takes no connection; trying `nix-daemon --stdio`");
                NixWork::Child(self.endpoint.commands.daemon.clone())
            }
        }
    }

    async fn work(&mut self, work: Work) -> SessionEnd {
        match work {
            Work::Control(request) => self.answer(request).await,
            Work::Nix(work) => {
                let peer = &self.admission.peer().name;
                let session = match self.endpoint.sessions.begin(Lane::Direct, peer) {
                    Ok(session) => session,
                    Err(refused) => return SessionEnd::Refused(RefusalKind::Busy, refused.to_string()),
                };
                let end = match work {
                    NixWork::Daemon(stream) => self.join(stream, &session).await,
                    NixWork::Child(spec) => self.run(&spec, &session).await,
                };
                session.set_end(end.to_string());
                end
            }
        }
    }

    /// A control verb's answer.
    async fn answer(&mut self, request: ControlRequest) -> SessionEnd {
        let control = Arc::clone(&self.endpoint.control);
        let (admission, cancel) = (Arc::clone(&self.admission), self.cancel);
        let (inlet, outlet) = (&mut self.inlet, &mut self.outlet);
        let answer = async {
            outlet.accept().await?;
            let reply = control.answer(admission.peer(), request.clone()).await;
            outlet.send(Output::Data, &reply.stdout).await?;
            outlet.send(Output::Stderr, reply.stderr.as_bytes()).await?;
            if let (0, Some(mut lines)) = (reply.exit_code, Arc::clone(&control).follow(admission.peer(), &request)) {
                while let Some(line) = lines.next().await {
                    outlet.send(Output::Data, &line).await?;
                }
            }
            Ok::<_, io::Error>(reply.exit_code)
        };
        let done = tokio::select! {
            answered = answer => answered.map_or(SessionEnd::Client, SessionEnd::Finished),
            end = ended(inlet.feed(tokio::io::sink(), None), &admission, cancel) => end,
        };
        self.tell(&done).await;
        done
    }

    /// Joins the stream to the daemon's socket.
    async fn join(&mut self, daemon: UnixStream, session: &NixSession) -> SessionEnd {
        let (from_daemon, to_daemon) = daemon.into_split();
        let (inlet, outlet) = (&mut self.inlet, &mut self.outlet);
        let output = async {
            outlet.accept().await?;
            let look = |bytes: &[u8]| session.handle_daemon_bytes(bytes);
            outlet.pump(from_daemon, None::<tokio::io::Empty>, &CancellationToken::new(), look).await
        };
        let end = tokio::select! {
            done = output => done.map_or(SessionEnd::Client, |()| SessionEnd::Finished(0)),
            words = session.unanswered(self.endpoint.answer_deadline) => SessionEnd::Unanswered(words),
            end = ended(inlet.feed(to_daemon, Some(session)), &self.admission, self.cancel) => end,
        };
        // The daemon ends its worker, and that its build, once both halves of the socket are dropped: by now.
        self.tell(&end).await;
        end
    }

    /// Runs a child.
    async fn run(&mut self, spec: &ChildSpec, session: &NixSession) -> SessionEnd {
        let not_started = |words: String| SessionEnd::Refused(RefusalKind::NotStarted, words);
        let mut child = match GroupChild::start(spec).await {
            Ok(child) => child,
            Err(error) => {
                tracing::warn!(%error, "a permitted command couldn't be started");
                return not_started(error.to_string());
            }
        };
        let Some((stdin, stdout, stderr)) = child.take_pipes() else {
            return not_started("the child has no pipes".to_owned());
        };
        let exited = CancellationToken::new();
        let end = {
            let (inlet, outlet) = (&mut self.inlet, &mut self.outlet);
            let waiting = async {
                let status = child.wait().await;
                exited.cancel();
                Ok(status)
            };
            let output = async {
                outlet.accept().await?;
                outlet.pump(stdout, Some(stderr), &exited, |bytes| session.handle_daemon_bytes(bytes)).await
            };
            let done = async { tokio::try_join!(waiting, output) };
            tokio::select! {
                done = done => match done {
                    Ok((Ok(status), ())) => SessionEnd::Finished(exit_code(status)),
                    Ok((Err(error), ())) => {
                        tracing::warn!(%error, "can't wait for a child");
                        SessionEnd::Finished(255)
                    }
                    Err(_) => SessionEnd::Client,
                },
                words = session.unanswered(self.endpoint.answer_deadline) => SessionEnd::Unanswered(words),
                end = ended(inlet.feed(stdin, Some(session)), &self.admission, self.cancel) => end,
            }
        };
        let stopping = async {
            if !exited.is_cancelled() {
                // Dropping it kills what this couldn't end.
                let _ = child.terminate(TERMINATE_GRACE).await;
            }
        };
        tokio::join!(self.tell(&end), stopping);
        end
    }

    /// The last frame, for whoever still listens.
    async fn tell(&mut self, end: &SessionEnd) {
        let (code, words) = match end {
            SessionEnd::Finished(code) => (*code, String::new()),
            SessionEnd::Disallowed(end) => (EXIT_DISALLOWED, end.to_string()),
            SessionEnd::Unanswered(words) => (EXIT_NOT_NOW, words.clone()),
            SessionEnd::Cancelled => (EXIT_ENDED, "the builder is ending".to_owned()),
            SessionEnd::Client | SessionEnd::Refused(..) => return,
        };
        // A client that doesn't take it isn't waited for.
        let _ = tokio::time::timeout(FAREWELL, self.outlet.end(code, &words)).await;
    }
}

/// Whatever ends a session but its program: the client's going, the policy, the caller.
async fn ended(
    feeding: impl Future<Output = io::Result<()>>,
    admission: &Admission,
    cancel: &CancellationToken,
) -> SessionEnd {
    let client = async {
        // A client may keep its side open or close it: the program's end counts. A stream that breaks is a client that went.
        if feeding.await.is_ok() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = client => SessionEnd::Client,
        end = admission.ended() => SessionEnd::Disallowed(end),
        () = cancel.cancelled() => SessionEnd::Cancelled,
    }
}

enum RequestFailure {
    Gone,
    Unreadable(RequestError),
}

impl<R: AsyncRead + Unpin> Inlet<R> {
    async fn request(&mut self) -> Result<Request, RequestFailure> {
        loop {
            match Request::read(&self.first).map_err(RequestFailure::Unreadable)? {
                Some((request, length)) => {
                    self.first.drain(..length);
                    return Ok(request);
                }
                None => {
                    let mut bounded = (&mut self.reader).take(MAX_REQUEST as u64);
                    match bounded.read_buf(&mut self.first).await {
                        Ok(0) | Err(_) => return Err(RequestFailure::Gone),
                        Ok(_) => {}
                    }
                }
            }
        }
    }

    /// Passes on what the client sends, until its end, which is passed on too; `session` sees it before the program does.
    ///
    /// # Errors
    /// When the client's stream breaks. A program that takes no more isn't one: what still comes has no reader.
    async fn feed(&mut self, mut program: impl AsyncWrite + Unpin, session: Option<&NixSession>) -> io::Result<()> {
        let mut buffer = std::mem::take(&mut self.first);
        let mut length = buffer.len();
        buffer.resize(INPUT_CHUNK.max(length), 0);
        let mut listens = true;
        loop {
            let data = buffer.get(..length).unwrap_or_default();
            if listens && !data.is_empty() {
                if let Some(session) = session {
                    session.handle_client_bytes(data);
                }
                listens = program.write_all(data).await.is_ok() && program.flush().await.is_ok();
                self.received += data.len() as u64;
            }
            length = self.reader.read(&mut buffer).await?;
            if length == 0 {
                if let Some(session) = session {
                    session.handle_client_end();
                }
                let _ = program.shutdown().await;
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests;
