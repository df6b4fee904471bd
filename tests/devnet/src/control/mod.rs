//! The control server: HTTP/1.1 on the outside, ts2021 and HTTP/2 inside.
//!
//! References: `tailscale/tailscale` `control/controlhttp/controlhttpserver`, `tstest/integration/testcontrol`.

mod calls;
mod map_stream;
mod ts2021;
mod zstd;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use nixtail_proto::key::MachinePrivate;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::{self, Api};
use crate::error::ConnectionError;
use crate::http1;
use crate::misbehaviour::{Call, Misbehaviour};
use crate::tailnet::Tailnet;

/// Most connections at a time; a node has one, and one for `/key` at its start.
const MAX_CONNECTIONS: usize = 1024;

/// What its connections share.
pub(crate) struct Control {
    tailnet: Arc<Tailnet>,
    api: Api,
    key: Mutex<Arc<MachinePrivate>>,
    early_payload: AtomicBool,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Cancelled, and replaced, to cut all connections of the moment.
    cut: Mutex<CancellationToken>,
}

impl Control {
    pub(crate) fn new(tailnet: Arc<Tailnet>, key: MachinePrivate, tasks: TaskTracker, stop: CancellationToken) -> Self {
        let cut = Mutex::new(stop.child_token());
        Self {
            tailnet,
            api: Api::default(),
            key: Mutex::new(Arc::new(key)),
            early_payload: AtomicBool::new(true),
            tasks,
            stop,
            cut,
        }
    }

    /// Sends the early payload, or doesn't.
    pub(crate) fn send_early_payload(&self, on: bool) {
        self.early_payload.store(on, Ordering::Relaxed);
    }

    /// Makes another key; the error is why the system gives no randomness.
    pub(crate) fn rotate_key(&self) -> Result<(), String> {
        let key = MachinePrivate::generate(&mut crate::random::rng()?);
        *self.key.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(key);
        Ok(())
    }

    fn key(&self) -> Arc<MachinePrivate> {
        Arc::clone(&self.key.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The API beside it.
    pub(crate) fn api(&self) -> &Api {
        &self.api
    }

    /// Cuts every connection there is; new ones are let in.
    pub(crate) fn cut_connections(&self) {
        let mut cut = self.cut.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *cut, self.stop.child_token()).cancel();
    }

    /// Serves until it is stopped.
    pub(crate) async fn serve(self: Arc<Self>, listener: TcpListener) {
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let (stream, from) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, most likely: better a pause than a spin.
                    tracing::warn!(%error, "devnet control: cannot accept");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&room).try_acquire_owned() else { continue };
            let cut = self.cut.lock().unwrap_or_else(PoisonError::into_inner).child_token();
            let control = Arc::clone(&self);
            self.tasks.spawn(async move {
                let ended = tokio::select! {
                    () = cut.cancelled() => return,
                    ended = control.connection(stream, cut.clone()) => ended,
                };
                if let Err(error) = ended {
                    tracing::debug!(%from, %error, "devnet control: connection ended");
                }
                drop(permit);
            });
        }
    }

    async fn connection(&self, mut stream: TcpStream, cut: CancellationToken) -> Result<(), ConnectionError> {
        // Map messages are small and waited for.
        stream.set_nodelay(true)?;
        let request = http1::Request::read(&mut stream).await?;
        let call = match (request.method.as_str(), request.path()) {
            ("GET", "/key") => Some(Call::Key),
            // Go's WebSocket clients GET it.
            (_, "/ts2021") => Some(Call::Upgrade),
            (_, path) => api::call_of(path),
        };
        match call.and_then(|call| self.tailnet.conduct().next(call)) {
            None => {}
            Some(Misbehaviour::Delay(pause)) => tokio::time::sleep(pause).await,
            Some(Misbehaviour::Answer(answer)) => return http1::send(&mut stream, &answer).await,
            Some(Misbehaviour::Silence) => return http1::until_closed(&mut stream).await,
            // Nothing has happened here before an answer, so there is none to be lost.
            Some(Misbehaviour::Cut | Misbehaviour::LoseAnswer) => return Ok(()),
        }
        match (request.method.as_str(), request.path()) {
            ("GET", "/key") => self.answer_key(&mut stream, &request).await,
            ("GET", "/derpmap/default") => {
                let map = serde_json::json!(self.tailnet.derp_map()).to_string();
                http1::answer(&mut stream, "200 OK", "application/json", &map).await
            }
            ("GET", path) if path.starts_with("/login/") => self.finish_login(&mut stream, path).await,
            (_, path) if api::call_of(path).is_some() => {
                let body = request.read_body(&mut stream).await?;
                http1::send(&mut stream, &self.api.answer(&request, &body, &self.tailnet)).await
            }
            ("POST", "/ts2021") => match ts2021::accept(stream, &request, &self.key(), self.early_payload()).await? {
                Some((stream, client)) => calls::serve(stream, client, &self.tailnet, &self.tasks, &cut).await,
                None => Ok(()),
            },
            _ => {
                let text = "This is a nixtail devnet's control server: only /key, /derpmap/default, /ts2021 and a little of /api/v2 are here.\n";
                http1::answer(&mut stream, "404 Not Found", "text/plain", text).await
            }
        }
    }

    /// A person opened the URL of a login: on a devnet that is all there is to it.
    async fn finish_login(&self, stream: &mut TcpStream, path: &str) -> Result<(), ConnectionError> {
        let url = format!("http://{}{path}", stream.local_addr()?);
        if self.tailnet.administer(|registry, _| registry.finish_login(&url, None)) {
            return http1::answer(stream, "200 OK", "text/plain", "The node is logged in.\n").await;
        }
        http1::answer(stream, "404 Not Found", "text/plain", "No node waits for this login.\n").await
    }

    fn early_payload(&self) -> bool {
        self.early_payload.load(Ordering::Relaxed)
    }

    /// `GET /key?v=`: the server's public key.
    async fn answer_key(&self, stream: &mut TcpStream, request: &http1::Request) -> Result<(), ConnectionError> {
        if request.query("v").is_none_or(|version| version.parse::<u16>().is_err()) {
            let text = "the capability version is missing: GET /key?v=<number>\n";
            return http1::answer(stream, "400 Bad Request", "text/plain", text).await;
        }
        let none = nixtail_proto::key::MachinePublic::default();
        let keys = serde_json::json!({ "legacyPublicKey": none, "publicKey": self.key().public() });
        http1::answer(stream, "200 OK", "application/json", &keys.to_string()).await
    }
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
