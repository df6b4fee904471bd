//! Asking a builder something: one connection through the tunnel, over SSH or the direct lane, and one control verb on it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use nixtail_proto::direct::{self, RefusalKind, RequestError};
use nixtail_proto::nix_command::ControlRequest;
use nixtail_proto::run::{Failure, Stage};
use russh::client::{Config, DisconnectReason, Handle, Handler, Msg, Session};
use russh::keys::{HashAlg, PublicKeyOrCertificate};
use russh::{Channel, ChannelMsg};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use crate::agent::Stream;
use crate::direct::{CallError, Followed, Following, Reply};

/// How long one verb may take from the first byte to the last: some round trips, and what the builder looks up.
const VERB_DEADLINE: Duration = Duration::from_secs(20);
/// How long a verb that goes on may say nothing: longer than whoever follows it waits.
const FOLLOW_SILENCE: Duration = Duration::from_secs(120);
/// The longest answer that is read. Facts have about 1 KiB.
const MAX_ANSWER: usize = 64 * 1024;
/// The longest text of a builder's that is shown to a person.
const MAX_SHOWN: usize = 300;

/// The host key that a builder showed, as a line of an authorized_keys file without a comment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostKeyLine(pub String);

/// What a builder answered, and the host key under which it did.
#[derive(Debug)]
pub struct Answer {
    /// What the verb wrote to its stdout.
    pub text: String,
    /// The key that the connection was made under.
    pub host_key: HostKeyLine,
}

/// Why there is no good answer.
#[derive(Debug)]
pub struct Refusal {
    /// The stage at which it went wrong, and words for a person.
    pub failure: Failure,
    /// With which exit status the verb was refused; `None` where there was no answer at all.
    pub status: Option<u32>,
    /// What it wrote to its stdout.
    pub text: String,
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        refusal.failure
    }
}

/// Runs `request` on the builder behind `stream`, logging in as `login`.
///
/// The host key must be one of `expected`. An empty `expected` takes the key that is shown: the stream has been
/// authenticated by the builder's node key already, and control doesn't pass host keys on everywhere.
///
/// # Errors
/// A [`Refusal`] that names the stage at which it went wrong, in words for a person.
pub async fn ask<S>(stream: S, login: &str, expected: &[String], request: &ControlRequest) -> Result<Answer, Refusal>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    timeout(VERB_DEADLINE, exchange(stream, login, expected, request)).await.unwrap_or_else(|_| {
        Err(failure(
            Stage::Connect,
            format!("no answer to `{}` within {} s", request.verb.as_str(), VERB_DEADLINE.as_secs()),
        ))
    })
}

/// As [`ask`], over the direct lane: the stream is authenticated by the builder's node key, and there is no host key.
///
/// # Errors
/// As [`ask`].
pub async fn ask_directly<S>(stream: S, login: &str, request: &ControlRequest) -> Result<String, Refusal>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (call, stage) = (direct_call(login, request)?, stage_of(request));
    let reply = timeout(VERB_DEADLINE, crate::direct::ask(stream, &call)).await.map_err(|_| {
        let (verb, seconds) = (request.verb.as_str(), VERB_DEADLINE.as_secs());
        failure(Stage::Connect, format!("no answer to `{verb}` within {seconds} s"))
    })?;
    let reply = reply.map_err(|error| broken_off(stage, error))?;
    let text = String::from_utf8_lossy(&reply.stdout).into_owned();
    direct_end(stage, &reply).map_err(|refusal| Refusal { text: text.clone(), ..refusal })?;
    Ok(text)
}

fn direct_call(login: &str, request: &ControlRequest) -> Result<direct::Request, Refusal> {
    let unfit = |error: RequestError| failure(stage_of(request), error.to_string());
    direct::Request::new(login, &request.to_command_line()).map_err(unfit)
}

fn broken_off(stage: Stage, error: CallError) -> Refusal {
    match error {
        CallError::Refused { kind: RefusalKind::Policy, words } => failure(Stage::Policy, shown(&words)),
        CallError::Refused { words, .. } => failure(stage, shown(&words)),
        error @ CallError::Answer(_) => failure(Stage::Connect, shown(&error.to_string())),
    }
}

/// How a verb's session of the direct lane ended.
fn direct_end(stage: Stage, reply: &Reply) -> Result<(), Refusal> {
    if reply.code == 0 {
        return Ok(());
    }
    let stderr = shown(&String::from_utf8_lossy(&reply.stderr));
    let words = [stderr, shown(&reply.words), format!("exit status {}", reply.code)];
    let reason = words.into_iter().find(|words| !words.is_empty()).unwrap_or_default();
    Err(Refusal { status: Some(reply.code), ..failure(stage, reason) })
}

async fn exchange<S>(stream: S, login: &str, expected: &[String], request: &ControlRequest) -> Result<Answer, Refusal>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut asked = Asked::send(stream, login, expected, request, VERB_DEADLINE).await?;
    let mut stdout = Vec::new();
    while let Some(data) = asked.next_data().await {
        take(&mut stdout, &data);
    }
    let text = String::from_utf8_lossy(&stdout).into_owned();
    let host_key = lock(&asked.seen).host_key.clone().map(HostKeyLine);
    asked.end().await.map_err(|refusal| Refusal { text: text.clone(), ..refusal })?;
    let host_key = host_key.ok_or_else(|| failure(Stage::HostKey, "it showed none".to_owned()))?;
    Ok(Answer { text, host_key })
}

/// Runs `request`, a verb that goes on, and hands over what it writes line by line. As [`ask`] otherwise.
///
/// # Errors
/// As [`ask`], where it doesn't begin.
pub async fn follow<S>(stream: S, login: &str, expected: &[String], request: &ControlRequest) -> Result<Lines, Refusal>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let sending = Asked::send(stream, login, expected, request, FOLLOW_SILENCE);
    let late = || failure(Stage::Connect, format!("no answer within {} s", VERB_DEADLINE.as_secs()));
    let asked = timeout(VERB_DEADLINE, sending).await.unwrap_or_else(|_| Err(late()))?;
    Ok(Lines { source: Some(Source::Ssh(asked)), buffer: Vec::new() })
}

/// As [`follow`], over the direct lane.
///
/// # Errors
/// As [`ask`], where it doesn't begin. That it is turned away is told by [`Lines::next`].
pub async fn follow_directly(stream: Stream, login: &str, request: &ControlRequest) -> Result<Lines, Refusal> {
    let (call, stage) = (direct_call(login, request)?, stage_of(request));
    let late = |_| failure(Stage::Connect, format!("no answer within {} s", VERB_DEADLINE.as_secs()));
    let begun = timeout(VERB_DEADLINE, crate::direct::follow(stream, &call)).await.map_err(late)?;
    let following = begun.map_err(|error| broken_off(stage, error))?;
    Ok(Lines { source: Some(Source::Direct(Box::new(following), stage)), buffer: Vec::new() })
}

/// What a verb that goes on writes.
pub struct Lines {
    /// `None` after its end.
    source: Option<Source>,
    buffer: Vec<u8>,
}

/// Over which lane it writes.
enum Source {
    Ssh(Asked),
    Direct(Box<Following<Stream>>, Stage),
}

impl Source {
    /// Adds what it writes next to `buffer`; says whether it goes on. Cancel safe.
    async fn read(&mut self, buffer: &mut Vec<u8>) -> Result<bool, Refusal> {
        match self {
            // What ends without a status is told by its end.
            Self::Ssh(asked) => Ok(match asked.next_data().await {
                Some(data) => {
                    buffer.extend_from_slice(&data);
                    true
                }
                None => false,
            }),
            Self::Direct(following, stage) => match timeout(FOLLOW_SILENCE, following.next()).await {
                Ok(Ok(Followed::Data(piece))) => {
                    buffer.extend_from_slice(&piece);
                    Ok(true)
                }
                Ok(Ok(Followed::Ended(reply))) => direct_end(*stage, &reply).map(|()| false),
                Ok(Err(error)) => Err(broken_off(*stage, error)),
                Err(_) => Err(failure(Stage::Connect, format!("it said nothing for {} s", FOLLOW_SILENCE.as_secs()))),
            },
        }
    }
}

impl Lines {
    /// The next line, of `longest` bytes at the most; `None` when the builder has ended them in order.
    ///
    /// # Errors
    /// When the connection breaks, the line is too long, or the verb failed.
    pub async fn next(&mut self, longest: usize) -> Result<Option<Vec<u8>>, Failure> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                return Ok(Some(self.buffer.drain(..=end).collect()));
            }
            if self.buffer.len() > longest {
                let reason = format!("a line of more than {longest} bytes");
                return Err(Failure { stage: Stage::Facts, reason });
            }
            let Some(source) = &mut self.source else { return Ok(None) };
            // What is yet to be read is a packet more than a line at the most.
            let goes_on = source.read(&mut self.buffer).await?;
            if let (false, Some(Source::Ssh(asked))) = (goes_on, self.source.take_if(|_| !goes_on)) {
                asked.end().await?;
            }
        }
    }
}

/// A command that was sent.
struct Asked {
    handle: Handle<Client>,
    channel: Channel<Msg>,
    seen: Arc<Mutex<Seen>>,
    stage: Stage,
    stderr: Vec<u8>,
    status: Option<u32>,
}

impl Asked {
    async fn send<S>(
        stream: S,
        login: &str,
        expected: &[String],
        request: &ControlRequest,
        inactivity: Duration,
    ) -> Result<Self, Refusal>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let client = Client { expected: expected.to_vec(), seen: Arc::clone(&seen) };
        let config = Arc::new(Config { inactivity_timeout: Some(inactivity), ..Config::default() });
        let lost = |seen: &Mutex<Seen>, error: russh::Error| {
            if lock(seen).refused_key {
                return failure(Stage::HostKey, "it shows another host key than control gave us".to_owned());
            }
            failure(Stage::Connect, error.to_string())
        };
        let connecting = russh::client::connect_stream(config, stream, client);
        let mut handle = connecting.await.map_err(|error| lost(&seen, error))?;
        let refusal = |seen: &Mutex<Seen>| {
            let banner = shown(&lock(seen).banner);
            let reason = if banner.is_empty() { format!("login as {login} is not allowed") } else { banner };
            failure(Stage::Policy, reason)
        };
        match handle.authenticate_none(login).await {
            Ok(result) if result.success() => {}
            Ok(_) => return Err(refusal(&seen)),
            // The endpoint closes right after its banner, which may overtake the answer.
            Err(_) if !lock(&seen).banner.is_empty() => return Err(refusal(&seen)),
            Err(error) => return Err(lost(&seen, error)),
        }
        let stage = stage_of(request);
        // A refusal that depends on the user comes as a disconnect right after the login (see `ssh::Endpoint`).
        let broken = |error: russh::Error| match lock(&seen).farewell.clone() {
            Some(farewell) => failure(Stage::Policy, shown(&farewell)),
            None => failure(stage, error.to_string()),
        };
        let channel = handle.channel_open_session().await.map_err(broken)?;
        channel.exec(true, request.to_command_line()).await.map_err(broken)?;
        channel.eof().await.map_err(broken)?;
        Ok(Self { handle, channel, seen, stage, stderr: Vec::new(), status: None })
    }

    /// What it writes to its stdout next; `None` at its end. Cancel safe.
    async fn next_data(&mut self) -> Option<Bytes> {
        loop {
            match self.channel.wait().await? {
                ChannelMsg::Data { data } => return Some(data),
                ChannelMsg::ExtendedData { data, .. } => take(&mut self.stderr, &data),
                ChannelMsg::ExitStatus { exit_status } => self.status = Some(exit_status),
                ChannelMsg::Close => return None,
                _ => {}
            }
        }
    }

    /// How it ended.
    async fn end(self) -> Result<(), Refusal> {
        // Best effort: the answer is here, and dropping the handle ends the connection too.
        let _ = self.handle.disconnect(russh::Disconnect::ByApplication, "", "").await;
        if let (None, Some(farewell)) = (self.status, lock(&self.seen).farewell.clone()) {
            return Err(failure(Stage::Policy, shown(&farewell)));
        }
        let Some(status) = self.status else {
            return Err(failure(Stage::Connect, "the connection ended before the answer".to_owned()));
        };
        if status == 0 {
            return Ok(());
        }
        let words = shown(&String::from_utf8_lossy(&self.stderr));
        let reason = if words.is_empty() { format!("exit status {status}") } else { words };
        Err(Refusal { status: Some(status), ..failure(self.stage, reason) })
    }
}

fn take(buffer: &mut Vec<u8>, data: &[u8]) {
    let room = MAX_ANSWER.saturating_sub(buffer.len());
    buffer.extend_from_slice(data.get(..room.min(data.len())).unwrap_or_default());
}

fn stage_of(request: &ControlRequest) -> Stage {
    use nixtail_proto::nix_command::ControlVerb;
    match request.verb {
        ControlVerb::Claim | ControlVerb::Release | ControlVerb::Stop => Stage::Claim,
        ControlVerb::Facts | ControlVerb::Ping | ControlVerb::Watch => Stage::Facts,
    }
}

fn failure(stage: Stage, reason: String) -> Refusal {
    Refusal { failure: Failure { stage, reason }, status: None, text: String::new() }
}

/// A builder's text, made safe to show: one line, no control characters, bounded.
fn shown(text: &str) -> String {
    let line: String = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_SHOWN).collect();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What the connection showed us besides the answer.
#[derive(Default)]
struct Seen {
    banner: String,
    host_key: Option<String>,
    refused_key: bool,
    /// The words of a disconnect.
    farewell: Option<String>,
}

fn lock(seen: &Mutex<Seen>) -> std::sync::MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

struct Client {
    expected: Vec<String>,
    seen: Arc<Mutex<Seen>>,
}

impl Handler for Client {
    type Error = russh::Error;

    async fn auth_banner(&mut self, banner: &str, _: &mut Session) -> Result<(), Self::Error> {
        let mut seen = lock(&self.seen);
        if seen.banner.len() < MAX_SHOWN {
            seen.banner.push_str(banner);
        }
        Ok(())
    }

    async fn disconnected(&mut self, reason: DisconnectReason<Self::Error>) -> Result<(), Self::Error> {
        match reason {
            DisconnectReason::ReceivedDisconnect(told) => {
                lock(&self.seen).farewell = Some(told.message);
                Ok(())
            }
            DisconnectReason::Error(error) => Err(error),
        }
    }

    async fn check_server_key(&mut self, key: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        let PublicKeyOrCertificate::PublicKey { key, .. } = key else {
            lock(&self.seen).refused_key = true;
            return Ok(false);
        };
        let fingerprint = key.fingerprint(HashAlg::Sha256);
        let known = |line: &String| {
            russh::keys::PublicKey::from_openssh(line).is_ok_and(|key| key.fingerprint(HashAlg::Sha256) == fingerprint)
        };
        let accepted = self.expected.is_empty() || self.expected.iter().any(known);
        let mut seen = lock(&self.seen);
        seen.refused_key = !accepted;
        seen.host_key = key.to_openssh().ok().map(|line: String| without_comment(&line));
        Ok(accepted)
    }
}

fn without_comment(line: &str) -> String {
    line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_builders_words_are_one_bounded_line() {
        assert_eq!(shown("a\n\u{1b}[31mb\r\n"), "a [31mb");
        assert_eq!(shown(&"x".repeat(1000)).len(), MAX_SHOWN);
    }

    #[test]
    fn answers_are_bounded() {
        let mut buffer = Vec::new();
        for _ in 0..20 {
            take(&mut buffer, &[0; 10_000]);
        }
        assert_eq!(buffer.len(), MAX_ANSWER);
    }
}
