//! Whether the system's daemon trusts this user (`trusted-users`): then it takes the user's own `builders` with the connection
//! (`ClientSettings::apply` in `NixOS/nix` `src/libstore/daemon.cc`), and ignores them otherwise.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::worker::{Worker, WorkerError};

/// How long a daemon may take to answer. One that a socket unit starts first takes a second.
const ANSWER_DEADLINE: Duration = Duration::from_secs(20);

/// Why the daemon didn't say.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DaemonError {
    /// Nobody is reached at its socket.
    #[error("{}: {source}", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It said something else, or hung up: as it does to whom `allowed-users` leaves out.
    #[error("{0}")]
    Answer(String),
    /// It said nothing.
    #[error("it doesn't answer within {} s", ANSWER_DEADLINE.as_secs())]
    Silent,
}

/// Asks the daemon at `socket` whether it trusts this process' user. It changes nothing.
///
/// # Errors
/// When there is no answer to that.
pub async fn is_trusted(socket: &Path) -> Result<bool, DaemonError> {
    let asking = async {
        let stream = UnixStream::connect(socket)
            .await
            .map_err(|source| DaemonError::Unreachable { path: socket.to_owned(), source })?;
        let (reader, writer) = stream.into_split();
        ask(reader, writer).await
    };
    timeout(ANSWER_DEADLINE, asking).await.unwrap_or(Err(DaemonError::Silent))
}

async fn ask(reader: impl AsyncRead + Unpin, writer: impl AsyncWrite + Unpin) -> Result<bool, DaemonError> {
    let unclear = |error: WorkerError| DaemonError::Answer(error.to_string());
    let worker = Worker::greet(reader, writer).await.map_err(unclear)?;
    if let Some(said) = worker.trusted {
        return Ok(said);
    }
    match worker.repair_nothing().await {
        Ok(()) => Ok(true),
        Err(WorkerError::Refused(words)) if words.contains("repairing is not allowed") => Ok(false),
        Err(error) => Err(unclear(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREETING: u64 = 0x6478_696f;
    const LAST: u64 = 0x616c_7473;
    const ERROR: u64 = 0x6378_7470;

    fn words(numbers: &[u64]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    /// A string as it goes over the wire.
    fn string(text: &str) -> Vec<u8> {
        let mut bytes = words(&[text.len() as u64]);
        bytes.extend_from_slice(text.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    async fn said(daemon: &[u8]) -> Result<bool, DaemonError> {
        ask(daemon, tokio::io::sink()).await
    }

    #[tokio::test]
    async fn newer_daemons_say_it_in_their_greeting() {
        assert!(said(&words(&[GREETING, 0x126, 0, 1, LAST])).await.unwrap());
        assert!(!said(&words(&[GREETING, 0x123, 0, 2, LAST])).await.unwrap());
    }

    #[tokio::test]
    async fn older_ones_are_asked_to_repair_nothing() {
        let greeting = words(&[GREETING, 0x122, 0, LAST]);
        assert!(said(&[greeting.clone(), words(&[LAST, 1])].concat()).await.unwrap());
        let refusal = |text: &str| {
            // Kind, level, name, message, no position, no traces.
            let parts = [words(&[ERROR]), string("Error"), words(&[0]), string("Error"), string(text), words(&[0, 0])];
            [greeting.clone(), parts.concat()].concat()
        };
        let untrusted = "repairing is not allowed because you are not in 'trusted-users'";
        assert!(!said(&refusal(untrusted)).await.unwrap());
        let error = said(&refusal("the database is locked")).await.unwrap_err();
        assert!(error.to_string().contains("the database is locked"), "{error}");
    }

    #[tokio::test]
    async fn who_is_hung_up_on_hears_that() {
        let error = said(&[]).await.unwrap_err();
        assert!(matches!(&error, DaemonError::Answer(words) if words.contains("ended the connection")), "{error}");
    }

    #[tokio::test]
    async fn a_socket_without_a_daemon_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = is_trusted(&folder.path().join("socket")).await.unwrap_err();
        assert!(error.to_string().contains("/socket: "), "{error}");
    }
}
