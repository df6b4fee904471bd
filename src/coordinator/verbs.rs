//! Asking a builder something: one SSH connection through the tunnel, one control verb on it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use nixtail_proto::nix_command::ControlRequest;
use nixtail_proto::run::{Failure, Stage};
use russh::ChannelMsg;
use russh::client::{Config, DisconnectReason, Handler, Session};
use russh::keys::{HashAlg, PublicKeyOrCertificate};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

/// How long one verb may take from the first byte to the last: some round trips, and what the builder looks up.
const VERB_DEADLINE: Duration = Duration::from_secs(20);
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

async fn exchange<S>(stream: S, login: &str, expected: &[String], request: &ControlRequest) -> Result<Answer, Refusal>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let seen = Arc::new(Mutex::new(Seen::default()));
    let client = Client { expected: expected.to_vec(), seen: Arc::clone(&seen) };
    let config = Arc::new(Config { inactivity_timeout: Some(VERB_DEADLINE), ..Config::default() });
    let lost = |seen: &Mutex<Seen>, error: russh::Error| {
        if lock(seen).refused_key {
            return failure(Stage::HostKey, "it shows another host key than control gave us".to_owned());
        }
        failure(Stage::Connect, error.to_string())
    };
    let mut handle = russh::client::connect_stream(config, stream, client).await.map_err(|error| lost(&seen, error))?;
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
    // A refusal that depends on the user comes as a disconnect right after the login (see `ssh::Endpoint`).
    let broken = |error: russh::Error| match lock(&seen).farewell.clone() {
        Some(farewell) => failure(Stage::Policy, shown(&farewell)),
        None => failure(stage_of(request), error.to_string()),
    };
    let mut channel = handle.channel_open_session().await.map_err(broken)?;
    channel.exec(true, request.to_command_line()).await.map_err(broken)?;
    channel.eof().await.map_err(broken)?;
    let (mut stdout, mut stderr, mut status) = (Vec::new(), Vec::new(), None);
    while let Some(message) = channel.wait().await {
        match message {
            ChannelMsg::Data { data } => take(&mut stdout, &data),
            ChannelMsg::ExtendedData { data, .. } => take(&mut stderr, &data),
            ChannelMsg::ExitStatus { exit_status } => status = Some(exit_status),
            ChannelMsg::Close => break,
            _ => {}
        }
    }
    // Best effort: the answer is here, and dropping the handle ends the connection too.
    let _ = handle.disconnect(russh::Disconnect::ByApplication, "", "").await;
    if let (None, Some(farewell)) = (status, lock(&seen).farewell.clone()) {
        return Err(failure(Stage::Policy, shown(&farewell)));
    }
    if status != Some(0) {
        let words = shown(&String::from_utf8_lossy(&stderr));
        let reason = match status {
            _ if !words.is_empty() => words,
            Some(status) => format!("exit status {status}"),
            None => "the connection ended before the answer".to_owned(),
        };
        let Refusal { failure, .. } = failure(stage_of(request), reason);
        return Err(Refusal { failure, status, text: String::from_utf8_lossy(&stdout).into_owned() });
    }
    let host_key = lock(&seen).host_key.clone().map(HostKeyLine);
    let host_key = host_key.ok_or_else(|| failure(Stage::HostKey, "it showed none".to_owned()))?;
    Ok(Answer { text: String::from_utf8_lossy(&stdout).into_owned(), host_key })
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
