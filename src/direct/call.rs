//! The coordinator's end of a session: a request, Nix's bytes, and the builder's answers.

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nixtail_proto::direct::{Decoder, Event, FrameError, Output, RefusalKind, Request, output_header};
use rustix::fs::FileType;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::{UnixStream, unix::pipe};

/// How long a builder may take from its dial to its first frame. Nix stands still meanwhile, with all its other builds.
const ANSWER_DEADLINE: Duration = Duration::from_secs(15);

/// How long a builder may take to end in order once Nix has closed its side and gone.
const NIX_GONE_GRACE: Duration = Duration::from_secs(1);

/// Bytes read at once from the tunnel: two frames.
const ANSWER_BUFFER: usize = 128 * 1024;

/// Bytes read at once from Nix: what a pipe holds.
const INPUT_BUFFER: usize = 64 * 1024;

/// The longest answer to a question that is kept, in bytes. Facts have about 1 KiB.
const MAX_ANSWER: usize = 64 * 1024;

/// A stream of the builder's answers.
pub(super) struct Answers<R> {
    reader: R,
    decoder: Decoder,
    buffer: Vec<u8>,
    unread: Range<usize>,
}

/// Why there is no further answer.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// The tunnel's stream broke, or ended before the last frame.
    #[error("the connection to it broke: {0}")]
    Broken(io::Error),
    /// What came is none.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl<R: AsyncRead + Unpin> Answers<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, decoder: Decoder::new(), buffer: vec![0; ANSWER_BUFFER], unread: 0..0 }
    }

    /// The next one; `None` after the last. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Option<Event<'_>>, AnswerError> {
        loop {
            let mut rest = self.buffer.get(self.unread.clone()).unwrap_or_default();
            let event = self.decoder.next_event(&mut rest)?;
            let left = rest.len();
            let found = event.map(|event| match event {
                Event::Output(output, piece) => Err((output, piece.len())),
                Event::Accepted => Ok(Event::Accepted),
                Event::Refused(kind, words) => Ok(Event::Refused(kind, words)),
                Event::Ended(code, words) => Ok(Event::Ended(code, words)),
            });
            self.unread.start = self.unread.end - left;
            match found {
                Some(Ok(event)) => return Ok(Some(event)),
                Some(Err((output, length))) => {
                    let piece = self.unread.start - length..self.unread.start;
                    return Ok(Some(Event::Output(output, self.buffer.get(piece).unwrap_or_default())));
                }
                None if self.decoder.is_over() => return Ok(None),
                None => {}
            }
            // All was taken: the decoder keeps what is no event yet.
            let length = self.reader.read(&mut self.buffer).await.map_err(AnswerError::Broken)?;
            if length == 0 {
                let early = io::Error::new(io::ErrorKind::UnexpectedEof, "it ended before the last word");
                return Err(AnswerError::Broken(early));
            }
            self.unread = 0..length;
        }
    }
}

/// What a command answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Its standard output, as far as `MAX_ANSWER` goes.
    pub stdout: Vec<u8>,
    /// Its standard error, as far.
    pub stderr: Vec<u8>,
    /// Its exit code.
    pub code: u32,
    /// Why it was ended, if it was.
    pub words: String,
}

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The builder turned the request away; its words are one line.
    #[error("{kind}: {words}")]
    Refused {
        /// Why, for programs.
        kind: RefusalKind,
        /// Why, for people.
        words: String,
    },
    /// It broke off.
    #[error(transparent)]
    Answer(#[from] AnswerError),
}

/// Runs a command that takes no input, such as a control verb, and gathers what it answers. Not bounded in time.
///
/// # Errors
/// When the builder turns it away or the stream breaks.
pub async fn ask<S: AsyncRead + AsyncWrite + Unpin>(stream: S, request: &Request) -> Result<Reply, CallError> {
    let mut following = follow(stream, request).await?;
    following.writer.shutdown().await.map_err(AnswerError::Broken)?;
    let mut stdout = Vec::new();
    loop {
        match following.next().await? {
            Followed::Data(piece) => keep(&mut stdout, &piece),
            Followed::Ended(reply) => return Ok(Reply { stdout, ..reply }),
        }
    }
}

/// Runs a command that takes no input and goes on, such as a watch: what it says is taken piece by piece.
///
/// # Errors
/// When the stream breaks. That the builder turns it away is told by [`Following::next`].
pub async fn follow<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    request: &Request,
) -> Result<Following<S>, CallError> {
    let (reader, mut writer) = tokio::io::split(stream);
    writer.write_all(request.to_string().as_bytes()).await.map_err(AnswerError::Broken)?;
    Ok(Following { answers: Answers::new(reader), writer, stderr: Vec::new() })
}

/// A command whose output is followed. Dropping it ends the command.
pub struct Following<S> {
    answers: Answers<ReadHalf<S>>,
    /// Open as long as the command is wanted.
    writer: WriteHalf<S>,
    stderr: Vec<u8>,
}

/// What a followed command does.
#[derive(Debug)]
pub enum Followed {
    /// It wrote this to its standard output.
    Data(Vec<u8>),
    /// It ended so. Its standard output was told before.
    Ended(Reply),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Following<S> {
    /// The next thing. Nothing follows its end. Cancel safe.
    ///
    /// # Errors
    /// When the builder turns the command away or the stream breaks.
    pub async fn next(&mut self) -> Result<Followed, CallError> {
        loop {
            match self.answers.next().await? {
                Some(Event::Output(Output::Data, piece)) => return Ok(Followed::Data(piece.to_vec())),
                Some(Event::Output(Output::Stderr, piece)) => keep(&mut self.stderr, piece),
                Some(Event::Refused(kind, words)) => return Err(CallError::Refused { kind, words }),
                Some(Event::Ended(code, words)) => {
                    let stderr = std::mem::take(&mut self.stderr);
                    return Ok(Followed::Ended(Reply { stdout: Vec::new(), stderr, code, words }));
                }
                Some(Event::Accepted) => {}
                None => return Err(AnswerError::Broken(io::ErrorKind::UnexpectedEof.into()).into()),
            }
        }
    }
}

fn keep(kept: &mut Vec<u8>, piece: &[u8]) {
    let room = MAX_ANSWER.saturating_sub(kept.len());
    kept.extend_from_slice(piece.get(..room.min(piece.len())).unwrap_or_default());
}

/// How a session of Nix's ended.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The builder's program ended, or the builder ended it and says why.
    Ended(u32, String),
    /// The builder turned it away.
    Refused(RefusalKind, String),
    /// The connection, or the builder at its other end, broke.
    Broken(String),
    /// Nix, or the program that it started, went first. Whatever still runs at the builder is to end.
    NixGone,
}

/// Nix's two ends of a session.
pub(super) struct NixEnds {
    stdin: Box<dyn AsyncRead + Send + Unpin>,
    stdout: Box<dyn AsyncWrite + Send + Unpin>,
}

impl NixEnds {
    /// Takes them as Nix makes them: two pipes, or one socket twice (Lix).
    pub(super) fn new(stdin: OwnedFd, stdout: OwnedFd) -> io::Result<Self> {
        let stdin: Box<dyn AsyncRead + Send + Unpin> = match kind_of(&stdin)? {
            FileType::Fifo => Box::new(pipe::Receiver::from_owned_fd(stdin)?),
            FileType::Socket => Box::new(socket(stdin)?),
            _ => return Err(unfit("input")),
        };
        let stdout: Box<dyn AsyncWrite + Send + Unpin> = match kind_of(&stdout)? {
            FileType::Fifo => Box::new(pipe::Sender::from_owned_fd(stdout)?),
            FileType::Socket => Box::new(socket(stdout)?),
            _ => return Err(unfit("output")),
        };
        Ok(Self { stdin, stdout })
    }
}

fn kind_of(descriptor: &OwnedFd) -> io::Result<FileType> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(descriptor)?.st_mode))
}

fn socket(descriptor: OwnedFd) -> io::Result<UnixStream> {
    let stream = StdUnixStream::from(descriptor);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

fn unfit(which: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("its standard {which} is neither a pipe nor a socket; only Nix is to start it"),
    )
}

/// Joins Nix to the builder behind `stream` until one of them ends. `program` is what Nix started: it is told of stderr, and
/// its end counts as Nix's. `on_accepted` is called when the builder lets us in.
pub(super) async fn join<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    request: &Request,
    ends: &mut NixEnds,
    program: &mut UnixStream,
    on_accepted: impl Fn(),
) -> Verdict {
    let NixEnds { stdin, stdout } = ends;
    let (reader, mut writer) = tokio::io::split(stream);
    let (mut from_program, mut to_program) = program.split();
    let (input_over, answered) = (AtomicBool::new(false), AtomicBool::new(false));
    let up = async {
        // Where it can't be written, the answers' end says why.
        if writer.write_all(request.to_string().as_bytes()).await.is_ok() {
            send_input(stdin, &mut writer, &input_over).await;
        }
        std::future::pending::<()>().await;
    };
    let down = async {
        let mut answers = Answers::new(reader);
        loop {
            match answers.next().await {
                Ok(Some(Event::Output(Output::Data, piece))) => {
                    if stdout.write_all(piece).await.is_err() {
                        return Verdict::NixGone;
                    }
                }
                Ok(Some(Event::Output(Output::Stderr, piece))) => {
                    // Where nobody reads it any more, its reader's end is noticed elsewhere.
                    let header = output_header(Output::Stderr, piece.len());
                    let _ = to_program.write_all(&[&header, piece].concat()).await;
                }
                Ok(Some(Event::Accepted)) => {
                    answered.store(true, Ordering::Relaxed);
                    on_accepted();
                }
                Ok(Some(Event::Ended(code, words))) => return Verdict::Ended(code, words),
                Ok(Some(Event::Refused(kind, words))) => return Verdict::Refused(kind, words),
                Ok(None) => return Verdict::Broken("it said nothing".to_owned()),
                Err(error) => return Verdict::Broken(error.to_string()),
            }
        }
    };
    let gone = async {
        let mut byte = [0];
        // It has nothing more to say.
        while matches!(from_program.read(&mut byte).await, Ok(1..)) {}
        if input_over.load(Ordering::Relaxed) {
            // Nix closed its side first, as it does when it is done: the builder ends by itself.
            tokio::time::sleep(NIX_GONE_GRACE).await;
        }
    };
    let unanswered = async {
        tokio::time::sleep(ANSWER_DEADLINE).await;
        if answered.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        biased;
        verdict = down => verdict,
        () = up => Verdict::NixGone,
        () = gone => Verdict::NixGone,
        () = unanswered => Verdict::Broken(format!("it didn't answer within {} s", ANSWER_DEADLINE.as_secs())),
    }
}

/// From Nix to the builder, until Nix closes its side or the stream breaks.
async fn send_input(stdin: &mut (impl AsyncRead + Unpin), writer: &mut (impl AsyncWrite + Unpin), over: &AtomicBool) {
    let mut buffer = vec![0; INPUT_BUFFER];
    loop {
        match stdin.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(length) => {
                if writer.write_all(buffer.get(..length).unwrap_or_default()).await.is_err() {
                    return;
                }
            }
        }
    }
    over.store(true, Ordering::Relaxed);
    // As for writing.
    let _ = writer.shutdown().await;
}
