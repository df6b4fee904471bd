//! HTTP/2 inside ts2021: one connection for all requests to control.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::client::SendRequest;
use http::{Method, Request, Response};
use nixtail_proto::control::judge_status;
use nixtail_proto::key::NodePublic;
use rand::rngs::StdRng;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;

use super::ControlError;
use super::server::Server;

/// Bytes of an answer at most (the map stream has bounds of its own), as in Go.
const MAX_ANSWER: usize = 1 << 20;
/// Bytes that control may send ahead in one stream: a whole netmap, mostly.
const STREAM_WINDOW: u32 = 4 << 20;
/// And in all streams together.
const CONNECTION_WINDOW: u32 = 8 << 20;
/// How long HTTP/2 may take to begin.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(15);

/// A connection to control. Clones share it; it ends with the last one.
#[derive(Clone)]
pub(super) struct Client {
    send: SendRequest<Bytes>,
    node_key: NodePublic,
    server: Arc<Server>,
    _driver: Arc<Driver>,
}

/// The task that moves the connection's bytes.
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Client {
    /// Begins HTTP/2 on a stream to control.
    pub(super) async fn begin(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        server: Arc<Server>,
        node_key: NodePublic,
    ) -> Result<Self, ControlError> {
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW).enable_push(false);
        let begun = tokio::time::timeout(BEGIN_TIMEOUT, builder.handshake(stream)).await;
        let timeout = |_| ControlError::Timeout { server: server.authority(), what: "HTTP/2", after: BEGIN_TIMEOUT };
        let (send, connection) = begun.map_err(timeout)??;
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection to control ended");
            }
        });
        Ok(Self { send, node_key, server, _driver: Arc::new(Driver(driver)) })
    }

    /// Sends JSON and gives the whole answer, if it is a success within `deadline`.
    pub(super) async fn post(
        &self,
        path: &str,
        json: &impl Serialize,
        what: &'static str,
        deadline: Duration,
    ) -> Result<Vec<u8>, ControlError> {
        let body = serde_json::to_vec(json).map_err(|error| ControlError::protocol(&self.server.authority(), error))?;
        let asked = async {
            let mut response = self.open(Method::POST, path, body.into()).await?;
            read_all(response.body_mut(), MAX_ANSWER).await
        };
        self.within(what, deadline, asked).await
    }

    /// Sends a request whose answer doesn't matter, to a path that control named.
    pub(super) async fn send_raw(&self, method: Method, path: &str, body: Vec<u8>) -> Result<(), ControlError> {
        self.open(method, path, body.into()).await.map(drop)
    }

    /// Sends a request and gives its answer as soon as its header is there and says success.
    pub(super) async fn open(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<RecvStream>, ControlError> {
        let request = Request::builder()
            .method(method)
            .uri(format!("https://{}{path}", self.server.authority()))
            .header("Ts-Lb", self.node_key.to_string())
            .header("Content-Type", "application/json")
            .body(())
            .map_err(|error| ControlError::protocol(&self.server.authority(), error))?;
        let mut send = self.send.clone().ready().await?;
        let (response, mut stream) = send.send_request(request, body.is_empty())?;
        if !body.is_empty() {
            stream.send_data(body, true)?;
        }
        let mut response = response.await?;
        let status = response.status().as_u16();
        if status != 200 {
            let retry_after = response.headers().get("retry-after").and_then(|value| value.to_str().ok());
            let retry_after = retry_after.map(str::to_owned);
            let text = read_all(response.body_mut(), MAX_ANSWER).await.unwrap_or_default();
            judge_status(status, retry_after.as_deref(), &text, &mut rand::make_rng::<StdRng>())?;
        }
        Ok(response)
    }

    /// Gives `future` so long and no longer.
    pub(super) async fn within<T>(
        &self,
        what: &'static str,
        after: Duration,
        future: impl Future<Output = Result<T, ControlError>>,
    ) -> Result<T, ControlError> {
        let timeout = |_| Err(ControlError::Timeout { server: self.server.authority(), what, after });
        tokio::time::timeout(after, future).await.unwrap_or_else(timeout)
    }

    /// Which server it leads to.
    pub(super) fn server(&self) -> &Server {
        &self.server
    }
}

/// Reads a body to its end or to `most` bytes.
async fn read_all(body: &mut RecvStream, most: usize) -> Result<Vec<u8>, ControlError> {
    let mut all = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        all.extend_from_slice(&chunk);
        if all.len() > most {
            all.truncate(most);
            break;
        }
    }
    Ok(all)
}
