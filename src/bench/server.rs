//! The measurements that a server takes part in at once.

use std::fmt::Debug;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Measurements at once. More would measure each other rather than the tunnel; a few are wanted to see how streams share.
pub const MAX_RUNS: usize = 16;

/// As many measurements as may go on go on already: the asking node's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{MAX_RUNS} measurements go on already")]
pub struct Busy;

/// Takes part in measurements. Each is bounded in time, and together they are in number.
#[derive(Debug)]
pub struct Server {
    places: Arc<Semaphore>,
    runs: TaskTracker,
    cancel: CancellationToken,
}

impl Default for Server {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(MAX_RUNS)), runs: TaskTracker::new(), cancel: CancellationToken::new() }
    }
}

impl Server {
    /// Takes part in what the other end of `stream` asks for, in a task of its own. `peer` is for the log.
    ///
    /// # Errors
    /// When too many measurements go on. The stream is dropped.
    pub fn handle_stream<S>(&self, stream: S, peer: impl Debug + Send + 'static) -> Result<(), Busy>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| Busy)?;
        let cancel = self.cancel.clone();
        self.runs.spawn(async move {
            match cancel.run_until_cancelled(super::serve(stream)).await {
                Some(Ok(outcome)) => tracing::info!(?peer, bytes = outcome.bytes, "measured"),
                Some(Err(error)) => tracing::warn!(?peer, %error, "a measurement failed"),
                None => tracing::info!(?peer, "a measurement was broken off"),
            }
            drop(place);
        });
        Ok(())
    }

    /// Breaks off what goes on, and waits for it.
    pub async fn stop(&self) {
        self.places.close();
        self.cancel.cancel();
        self.runs.close();
        self.runs.wait().await;
    }
}
