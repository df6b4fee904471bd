//! One session: a command, its child, and the pumps between the child's pipes and the channel.

use std::io;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use nixtail_proto::nix_command::{CommandRefusal, ControlRequest, NixCommand};
use russh::ChannelWriteHalf;
use russh::server::Msg;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::ChildStdin;
use tokio_util::sync::CancellationToken;

use super::connection::Connection;
use super::endpoint::AllowedCommands;
use super::flow::InputQueue;
use crate::builder::sessions::{ANSWER_DEADLINE, Session};
use crate::nix::spawn::{ChildSpec, GroupChild, SpawnError, TERMINATE_GRACE, exit_code};

/// The exit code of a refused command: found, but not to be run.
const EXIT_REFUSED: u32 = 126;

/// The exit code of a command that couldn't be started.
const EXIT_NOT_STARTED: u32 = 127;

/// The exit code of a command that may not run now: trying again later, or elsewhere, may help.
const EXIT_NOT_NOW: u32 = 75;

/// SSH's number for stderr (RFC 4254 §5.2).
const STDERR: u32 = 1;

/// The most that is read from a child at once: the size of a pipe.
const OUTPUT_CHUNK: usize = 64 * 1024;

/// How long a pipe may stay open and silent after the child's end, because something that left the child's group holds it.
const SILENCE_AFTER_EXIT: Duration = Duration::from_secs(5);

pub(crate) struct SessionParts {
    pub(crate) connection: Arc<Connection>,
    pub(crate) write: ChannelWriteHalf<Msg>,
    pub(crate) queue: Arc<InputQueue>,
    pub(crate) cancel: CancellationToken,
}

/// What a session does.
pub(crate) enum Work {
    Refused(CommandRefusal),
    Control(ControlRequest),
    Child(ChildSpec),
}

impl Work {
    pub(crate) fn of(command: NixCommand, allowed: &AllowedCommands) -> Self {
        match command {
            NixCommand::Daemon { process_ops, store: _ } => {
                let mut spec = allowed.daemon.clone();
                if process_ops {
                    spec.arguments.push("--process-ops".into());
                }
                Self::Child(spec)
            }
            NixCommand::Serve { store: _ } => Self::Child(allowed.serve.clone()),
            NixCommand::Control(request) => Self::Control(request),
        }
    }
}

/// Does `work`, then says how it ended and closes the channel.
pub(crate) async fn run(parts: SessionParts, work: Work) {
    let code = match work {
        Work::Refused(refusal) => complain(&parts, &refusal.to_string()).await.map(|()| EXIT_REFUSED),
        Work::Control(request) => answer_control(&parts, request).await,
        Work::Child(spec) => run_child(&parts, &spec).await,
    };
    parts.queue.discard();
    parts.connection.gate.drained();
    parts.connection.counters.highest_queued.fetch_max(parts.queue.highest(), Ordering::Relaxed);
    // Where the client is gone there is nobody to tell.
    if let Some(code) = code {
        let _ = parts.write.exit_status(code).await;
    }
    let _ = parts.write.eof().await;
    let _ = parts.write.close().await;
    parts.connection.close_channel(parts.write.id());
}

/// One line on stderr; `None` if the client went meanwhile.
async fn complain(parts: &SessionParts, text: &str) -> Option<()> {
    let line = format!("nixtail: {text}\n");
    send(parts, Some(STDERR), line.into()).await
}

/// Sends within the client's window; `None` if the client went meanwhile.
async fn send(parts: &SessionParts, extended: Option<u32>, data: Bytes) -> Option<()> {
    let length = data.len() as u64;
    let sending = async {
        match extended {
            None => parts.write.data_bytes(data).await,
            Some(code) => parts.write.extended_data_bytes(code, data).await,
        }
    };
    let sent = parts.cancel.run_until_cancelled(sending).await?;
    parts.connection.counters.bytes_out.fetch_add(length, Ordering::Relaxed);
    sent.ok()
}

async fn answer_control(parts: &SessionParts, request: ControlRequest) -> Option<u32> {
    let (control, peer) = (Arc::clone(&parts.connection.endpoint.config.control), parts.connection.peer());
    let reply = parts.cancel.run_until_cancelled(control.answer(peer, request.clone())).await?;
    send(parts, None, reply.stdout.into()).await?;
    send(parts, Some(STDERR), reply.stderr.into()).await?;
    let follow = if reply.exit_code == 0 { Arc::clone(&control).follow(peer, &request) } else { None };
    if let Some(mut lines) = follow {
        while let Some(line) = parts.cancel.run_until_cancelled(lines.next()).await? {
            send(parts, None, line).await?;
        }
    }
    Some(reply.exit_code)
}

async fn run_child(parts: &SessionParts, spec: &ChildSpec) -> Option<u32> {
    let session = match parts.connection.begin_nix_session() {
        Ok(session) => session,
        Err(refused) => return complain(parts, &refused.to_string()).await.map(|()| EXIT_NOT_NOW),
    };
    let mut child = match GroupChild::start(spec).await {
        Ok(child) => child,
        Err(error) => {
            report_failed_start(&error);
            session.set_end("its command couldn't be started");
            return complain(parts, &error.to_string()).await.map(|()| EXIT_NOT_STARTED);
        }
    };
    let Some((stdin, stdout, stderr)) = child.take_pipes() else {
        return complain(parts, "the child has no pipes").await.map(|()| EXIT_NOT_STARTED);
    };
    let exited = CancellationToken::new();
    let mut unanswered = None;
    let finished = {
        let ended = async {
            let status = child.wait().await;
            exited.cancel();
            status
        };
        let output = pump(parts, None, stdout, &exited, |data| session.handle_daemon_bytes(data));
        let errors = pump(parts, Some(STDERR), stderr, &exited, |_| ());
        // The input pump ends before the child or not at all: a client may keep its side open until it knows the exit code.
        let input = async {
            feed(parts, stdin, &session).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            (status, (), ()) = async { tokio::join!(ended, output, errors) } => Some(status),
            () = input => None,
            words = session.unanswered(ANSWER_DEADLINE) => {
                unanswered = Some(words);
                None
            }
            () = parts.cancel.cancelled() => None,
        }
    };
    let status: io::Result<ExitStatus> = match finished {
        Some(status) => status,
        None => child.terminate(TERMINATE_GRACE).await,
    };
    if let Some(words) = unanswered {
        return complain(parts, &words).await.map(|()| EXIT_NOT_NOW);
    }
    session.set_end(match &status {
        _ if parts.cancel.is_cancelled() => "its client left, or it was ended here".to_owned(),
        Ok(status) => format!("exit code {}", exit_code(*status)),
        Err(error) => error.to_string(),
    });
    match status {
        Ok(status) => Some(exit_code(status)),
        Err(error) => complain(parts, &format!("can't wait for the child: {error}")).await.map(|()| EXIT_NOT_STARTED),
    }
}

fn report_failed_start(error: &SpawnError) {
    tracing::warn!(%error, "a permitted command couldn't be started");
}

/// From the queue to the child; the child's stdin closes at the client's EOF.
async fn feed(parts: &SessionParts, mut stdin: ChildStdin, session: &Session) {
    while let Some(piece) = parts.queue.pop().await {
        session.handle_client_bytes(&piece);
        if stdin.write_all(&piece).await.is_err() {
            // The child closed its stdin; what the client still sends has no reader.
            parts.queue.discard();
            parts.connection.gate.drained();
            return;
        }
        parts.queue.written(piece.len());
        parts.connection.gate.drained();
        parts.connection.counters.bytes_in.fetch_add(piece.len() as u64, Ordering::Relaxed);
    }
    session.handle_client_end();
}

/// From the child to the client, until the pipe's end, the client's, or a long silence after the child's end.
async fn pump(
    parts: &SessionParts,
    extended: Option<u32>,
    mut pipe: impl AsyncRead + Unpin,
    exited: &CancellationToken,
    look: impl Fn(&[u8]),
) {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(OUTPUT_CHUNK);
        let silence = async {
            exited.cancelled().await;
            tokio::time::sleep(SILENCE_AFTER_EXIT).await;
        };
        let read = tokio::select! {
            biased;
            read = pipe.read_buf(&mut buffer) => read,
            () = silence => return,
        };
        match read {
            Ok(0) | Err(_) => return,
            Ok(_) => look(&buffer),
        }
        if send(parts, extended, buffer.split().freeze()).await.is_none() {
            return;
        }
    }
}
