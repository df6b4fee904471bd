//! Serves the local API.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::routes::{Reply, Request, Routes, refusal};
use super::socket_path::BoundSocket;
use crate::report::{Exit, Failure};

/// Connections at once: each is one of the user's own processes, and Nix opens a few for each builder.
const MAX_CONNECTIONS: usize = 512;
/// A request is a few names and numbers.
const MAX_BODY: usize = 64 << 10;
/// What a connection's head may take; the server's own default is some 400 KiB.
const MAX_HEAD: usize = 16 << 10;
/// A client of ours sends its request at once. Less than our commands wait for an answer (10 s): where all places are taken by what
/// says half a request, they still get one.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the body may take after that: it is small, and comes with the head.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// The running local API. [`Server::stop`] ends it; dropping it stops it without waiting.
#[derive(Debug)]
pub struct Server {
    cancel: CancellationToken,
    /// Drops the calls that are still being answered.
    cut: CancellationToken,
    pub(super) tasks: TaskTracker,
}

/// Why the local API can't start.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The runtime refused the socket.
    #[error("the local socket can't be served: {0}")]
    Runtime(#[from] std::io::Error),
}

impl Server {
    /// Serves `routes` at a socket, on the current tokio runtime.
    ///
    /// # Errors
    /// A socket that the runtime doesn't take.
    pub fn start(socket: BoundSocket, routes: Routes) -> Result<Self, ServeError> {
        socket.listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(socket.listener.try_clone()?)?;
        let (cancel, cut, tasks) = (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
        let accepting = accept(listener, Arc::new(routes), tasks.clone(), cancel.clone(), cut.clone());
        let stopped = cancel.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = accepting => {}
                () = stopped.cancelled() => {}
            }
            // Its file goes before anything else: who comes later finds no agent, rather than one that doesn't answer.
            drop(socket);
        });
        Ok(Self { cancel, cut, tasks })
    }

    /// Stops serving: removes the socket, lets calls that are being answered end until `deadline` has passed, and cuts
    /// off what is left.
    pub async fn stop(self, deadline: Duration) {
        self.cancel.cancel();
        self.tasks.close();
        if tokio::time::timeout(deadline, self.tasks.wait()).await.is_err() {
            tracing::debug!(tasks = self.tasks.len(), "local calls didn't end in time and are cut off");
            // Dropping them takes no time.
            self.cut.cancel();
            self.tasks.wait().await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

async fn accept(
    listener: UnixListener,
    routes: Arc<Routes>,
    tasks: TaskTracker,
    cancel: CancellationToken,
    cut: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) if is_allowed(&stream) => {
                let serving = serve(stream, routes.clone(), tasks.clone(), cancel.clone());
                let serving = cut.clone().run_until_cancelled_owned(serving);
                tasks.spawn(async move {
                    serving.await;
                    drop(slot);
                });
            }
            Ok(_) => tracing::warn!("a process of another user tried the local socket"),
            Err(error) => {
                // Out of descriptors, say. Others end, and then it goes on.
                tracing::warn!(%error, "the local socket can't accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn is_allowed(stream: &UnixStream) -> bool {
    let own = rustix::process::getuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

async fn serve(stream: UnixStream, routes: Arc<Routes>, tasks: TaskTracker, cancel: CancellationToken) {
    let upgraded = cancel.clone();
    let service = service_fn(move |request| {
        let (routes, tasks, cancel) = (routes.clone(), tasks.clone(), upgraded.clone());
        async move { Ok::<_, Infallible>(answer(request, &routes, &tasks, &cancel).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = cancel.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a local call ended badly");
    }
}

async fn answer(
    mut request: http::Request<Incoming>,
    routes: &Routes,
    tasks: &TaskTracker,
    cancel: &CancellationToken,
) -> Reply {
    let Some(handler) = routes.find(request.method(), request.uri().path()) else {
        let message = format!("this agent has no {} {}", request.method(), request.uri().path());
        return refusal(&Failure::new(Exit::Usage, message).next("it may be of another version, or have another role"));
    };
    let upgrade = request.headers().contains_key(http::header::UPGRADE).then(|| hyper::upgrade::on(&mut request));
    let body = match read_body(request.into_body(), BODY_TIMEOUT).await {
        Ok(body) => body,
        Err(failure) => return refusal(&failure),
    };
    let streams = super::routes::Streams { tasks: tasks.clone(), cancel: cancel.clone() };
    match handler(Request { body, upgrade, streams }).await {
        Ok(reply) => reply,
        Err(failure) => refusal(&failure),
    }
}

pub(super) async fn read_body<B>(body: B, timeout: Duration) -> Result<Bytes, Failure>
where
    B: Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    match tokio::time::timeout(timeout, Limited::new(body, MAX_BODY).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) => Err(Failure::new(Exit::Usage, format!("the request can't be read: {error}"))),
        Err(_) => Err(Failure::new(Exit::Timeout, "the request's body didn't come in time")),
    }
}
