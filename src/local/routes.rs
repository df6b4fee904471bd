//! Which verbs the local API has. A role adds its own.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Method, StatusCode};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::SCHEMA;
use crate::report::{Exit, Failure};

/// Bytes moved at once between a local stream and the tunnel: the size of a stream's chunks.
const COPY_BUFFER: usize = 64 << 10;

/// What a handler answers with.
pub(super) type Reply = http::Response<Full<Bytes>>;

type Handler = Arc<dyn Fn(Request) -> BoxFuture<'static, Result<Reply, Failure>> + Send + Sync>;

/// The verbs of one agent's local API.
#[derive(Clone, Default)]
pub struct Routes {
    handlers: HashMap<(Method, &'static str), Handler>,
}

/// One call: its body, and the stream that it may turn into.
pub struct Request {
    pub(super) body: Bytes,
    pub(super) upgrade: Option<hyper::upgrade::OnUpgrade>,
    pub(super) streams: Streams,
}

/// Where the streams that calls have turned into are kept until the server stops.
#[derive(Clone)]
pub(super) struct Streams {
    pub(super) tasks: TaskTracker,
    pub(super) cancel: CancellationToken,
}

impl Routes {
    /// No verbs.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a verb whose answer is a JSON object; `schema` is added to it. A second handler for the same verb replaces
    /// the first.
    pub fn add<F, Fut, T>(&mut self, method: Method, path: &'static str, handler: F)
    where
        F: Fn(Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, Failure>> + Send + 'static,
        T: Serialize,
    {
        self.add_raw(method, path, move |request| {
            let answer = handler(request);
            async move { Ok(json(StatusCode::OK, &Answer { schema: SCHEMA, answer: answer.await? })) }
        });
    }

    /// Adds a verb that turns the call into a stream, joined to the one that `handler` gives.
    pub fn add_stream<F, Fut, S>(&mut self, method: Method, path: &'static str, handler: F)
    where
        F: Fn(Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<S, Failure>> + Send + 'static,
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.add_raw(method, path, move |mut request| {
            let (upgrade, streams) = (request.upgrade.take(), request.streams.clone());
            let far = handler(request);
            async move {
                let upgrade =
                    upgrade.ok_or_else(|| Failure::new(Exit::Usage, "this verb needs `Upgrade: nixtail-stream`"))?;
                Ok(streams.join(upgrade, far.await?))
            }
        });
    }

    fn add_raw<F, Fut>(&mut self, method: Method, path: &'static str, handler: F)
    where
        F: Fn(Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Reply, Failure>> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |request| Box::pin(handler(request)));
        self.handlers.insert((method, path), handler);
    }

    pub(super) fn find(&self, method: &Method, path: &str) -> Option<&Handler> {
        self.handlers.iter().find(|((m, p), _)| m == method && *p == path).map(|(_, handler)| handler)
    }
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.handlers.keys()).finish()
    }
}

impl Request {
    /// The body, read as JSON.
    ///
    /// # Errors
    /// A body that isn't what the verb takes: client and agent are of different versions, most likely.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_slice(&self.body).map_err(|error| {
            Failure::new(Exit::Usage, format!("the local API doesn't understand the request: {error}"))
        })
    }

    /// Lets `work` go on beside the answer, until it ends or the server stops: what speaks on a stream that the call turns into.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let cancel = self.streams.cancel.clone();
        self.streams.tasks.spawn(cancel.run_until_cancelled_owned(work));
    }

    /// As [`Self::json`]; without a body what is usual.
    ///
    /// # Errors
    /// As [`Self::json`].
    pub fn json_or_default<T: DeserializeOwned + Default>(&self) -> Result<T, Failure> {
        if self.body.is_empty() { Ok(T::default()) } else { self.json() }
    }
}

impl Streams {
    /// Answers that the call is a stream from here on, which is joined to `far` until both directions have ended.
    fn join<S>(&self, upgrade: hyper::upgrade::OnUpgrade, far: S) -> Reply
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let cancel = self.cancel.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = relay(upgrade, far) => {}
                () = cancel.cancelled() => {}
            }
        });
        let mut reply = Reply::default();
        *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        reply.headers_mut().insert(http::header::CONNECTION, http::HeaderValue::from_static("upgrade"));
        reply.headers_mut().insert(http::header::UPGRADE, http::HeaderValue::from_static("nixtail-stream"));
        reply
    }
}

async fn relay<S: AsyncRead + AsyncWrite + Unpin>(upgrade: hyper::upgrade::OnUpgrade, mut far: S) {
    let joined = async {
        let near = upgrade.await.map_err(std::io::Error::other)?;
        copy_bidirectional_with_sizes(&mut TokioIo::new(near), &mut far, COPY_BUFFER, COPY_BUFFER).await
    };
    match joined.await {
        Ok((sent, received)) => tracing::debug!(sent, received, "a local stream ended"),
        Err(error) => tracing::debug!(%error, "a local stream broke"),
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("body", &self.body.len()).finish_non_exhaustive()
    }
}

#[derive(Serialize)]
struct Answer<T> {
    schema: u32,
    #[serde(flatten)]
    answer: T,
}

#[derive(Serialize)]
struct Refusal<'a> {
    schema: u32,
    error: &'a Failure,
}

/// A failure as an HTTP answer.
pub(super) fn refusal(failure: &Failure) -> Reply {
    let status = match failure.exit {
        Exit::Usage | Exit::Configuration => StatusCode::BAD_REQUEST,
        Exit::Refused => StatusCode::FORBIDDEN,
        Exit::Unavailable => StatusCode::BAD_GATEWAY,
        Exit::TryAgain => StatusCode::SERVICE_UNAVAILABLE,
        Exit::Timeout => StatusCode::GATEWAY_TIMEOUT,
        Exit::General | Exit::NotExecutable | Exit::NotFound => StatusCode::INTERNAL_SERVER_ERROR,
    };
    json(status, &Refusal { schema: SCHEMA, error: failure })
}

fn json<T: Serialize>(status: StatusCode, value: &T) -> Reply {
    let (status, body) = match serde_json::to_vec(value) {
        Ok(body) => (status, body),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string().into_bytes()),
    };
    let mut reply = http::Response::new(Full::new(Bytes::from(body)));
    *reply.status_mut() = status;
    reply.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    reply
}
