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
/// Bytes of an answer's headers at most.
const MAX_HEADERS: u32 = 64 << 10;
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
        builder
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEADERS)
            .enable_push(false);
        let begun = async { builder.handshake(stream).await.map_err(ControlError::from) };
        let (send, connection) = server.within("HTTP/2", BEGIN_TIMEOUT, begun).await?;
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
            let answer = read_all(response.body_mut(), MAX_ANSWER).await?;
            if answer.len() == MAX_ANSWER {
                return Err(ControlError::protocol(&self.server.authority(), "its answer is too long"));
            }
            Ok(answer)
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
            judge_status(status, retry_after.as_deref(), &text, super::clock(), &mut rand::make_rng::<StdRng>())?;
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
        self.server.within(what, after, future).await
    }

    /// The same connection, for another node key of ours.
    pub(super) fn speaking_for(self, node_key: NodePublic) -> Self {
        Self { node_key, ..self }
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
        if all.len() >= most {
            all.truncate(most);
            break;
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use nixtail_proto::key::NodePrivate;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    const SHORT: Duration = Duration::from_millis(300);
    const PATIENCE: Duration = Duration::from_secs(60);
    /// Kinds of frames (RFC 9113 §6).
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    /// An empty frame of settings, with which a server begins.
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

    /// What a request gives on a connection whose other end is `far`.
    async fn ask<F: Future<Output = ()> + Send + 'static>(
        deadline: Duration,
        far: impl FnOnce(DuplexStream) -> F,
    ) -> Result<Vec<u8>, ControlError> {
        let (near, stream) = duplex(64 << 10);
        let served = tokio::spawn(far(stream));
        let asked = async {
            let server = Arc::new(Server::parse("http://control.example").unwrap());
            let key = NodePrivate::generate(&mut rand::make_rng::<StdRng>()).public();
            let client = Client::begin(near, server, key).await?;
            client.post("/machine/register", &serde_json::json!({}), "registration", deadline).await
        };
        let answer = tokio::time::timeout(PATIENCE, asked).await.expect("it ends");
        served.abort();
        answer
    }

    /// A server that answers the first request with this status and then for ever with pieces of a body.
    async fn answer_without_end(stream: DuplexStream, status: u16, piece: usize, pause: Duration) {
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let (_, mut respond) = connection.accept().await.unwrap().unwrap();
        let mut body = respond.send_response(Response::builder().status(status).body(()).unwrap(), false).unwrap();
        tokio::spawn(async move { while connection.accept().await.is_some() {} });
        loop {
            body.reserve_capacity(piece);
            while body.capacity() == 0 {
                if std::future::poll_fn(|cx| body.poll_capacity(cx)).await.is_none() {
                    return;
                }
            }
            let len = body.capacity().min(piece);
            if body.send_data(vec![b' '; len].into(), false).is_err() {
                return;
            }
            tokio::time::sleep(pause).await;
        }
    }

    #[tokio::test]
    async fn an_answer_that_never_comes_is_named() {
        let silent = |mut stream: DuplexStream| async move { drop(stream.read_to_end(&mut Vec::new()).await) };
        let error = ask(SHORT, silent).await.unwrap_err();
        assert!(matches!(error, ControlError::Timeout { what: "registration", .. }), "{error}");
        let settings_only = |stream: DuplexStream| async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            let _kept = connection.accept().await;
            std::future::pending::<()>().await;
        };
        let error = ask(SHORT, settings_only).await.unwrap_err();
        assert!(matches!(error, ControlError::Timeout { what: "registration", .. }), "{error}");
    }

    /// Such as a control server that is about to be replaced: what it has begun goes on, and nothing new is taken.
    #[tokio::test]
    async fn a_connection_that_takes_no_more_requests_is_told_from_a_failed_one() {
        let (near, stream) = duplex(64 << 10);
        let (open, goodbye) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
        let is_open = Arc::clone(&open);
        let say_goodbye = Arc::clone(&goodbye);
        let served = tokio::spawn(async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            let (_, mut first) = connection.accept().await.unwrap().unwrap();
            let _body = first.send_response(Response::new(()), false).unwrap();
            is_open.notify_one();
            let (_, mut second) = connection.accept().await.unwrap().unwrap();
            second.send_reset(h2::Reason::INTERNAL_ERROR);
            tokio::select! {
                // Keeps the connection moving.
                _ = connection.accept() => {}
                () = say_goodbye.notified() => {}
            }
            connection.graceful_shutdown();
            while connection.accept().await.is_some() {}
        });
        let asked = async {
            let server = Arc::new(Server::parse("http://control.example").unwrap());
            let key = NodePrivate::generate(&mut rand::make_rng::<StdRng>()).public();
            let client = Client::begin(near, server, key).await.unwrap();
            let ask = async || client.post("/machine/map", &serde_json::json!({}), "an update", PATIENCE).await;
            let mut long = client.open(Method::POST, "/machine/map", Bytes::new()).await.unwrap().into_body();
            open.notified().await;
            assert!(!ask().await.unwrap_err().ends_connection(), "one request failed");
            goodbye.notify_one();
            // One that comes before the goodbye is left unanswered, or reset.
            while !matches!(tokio::time::timeout(SHORT, ask()).await, Ok(Err(error)) if error.ends_connection()) {}
            let more = tokio::time::timeout(SHORT, long.data()).await;
            assert!(more.is_err(), "what is open goes on: {more:?}");
        };
        tokio::time::timeout(PATIENCE, asked).await.expect("it ends");
        served.abort();
    }

    #[tokio::test]
    async fn an_answer_that_never_ends_is_cut_off() {
        let flood = |stream| answer_without_end(stream, 200, 16 << 10, Duration::ZERO);
        let error = ask(PATIENCE, flood).await.unwrap_err();
        assert!(error.to_string().contains("too long"), "{error}");
        let refusal = |stream| answer_without_end(stream, 401, 16 << 10, Duration::ZERO);
        assert!(ask(PATIENCE, refusal).await.unwrap_err().is_refusal());
        let trickle = |stream| answer_without_end(stream, 200, 1, Duration::from_millis(10));
        let error = ask(SHORT, trickle).await.unwrap_err();
        assert!(matches!(error, ControlError::Timeout { what: "registration", .. }), "{error}");
    }

    /// A frame whose header is right, with anything in it (RFC 9113 §4.1): most often on the stream of our request.
    fn frame() -> impl Strategy<Value = Vec<u8>> {
        let kind = prop_oneof![4 => Just(DATA), 4 => Just(HEADERS), 2 => 2_u8..=10];
        let stream = prop_oneof![6 => Just(1_u32), 2 => Just(0), 1 => any::<u32>()];
        let status_200 = vec![0x88];
        let payload = prop_oneof![Just(status_200), Just(b"{}".to_vec()), prop::collection::vec(any::<u8>(), 0..60)];
        (kind, any::<u8>(), stream, payload).prop_map(|(kind, flags, stream, payload)| {
            let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
            [&len[1..], &[kind, flags], &stream.to_be_bytes(), &payload].concat()
        })
    }

    /// What a request gives where the server says these bytes and hangs up.
    fn ask_one_that_says(runtime: &tokio::runtime::Runtime, bytes: Vec<u8>) -> Result<Vec<u8>, ControlError> {
        runtime.block_on(ask(PATIENCE, move |mut stream| async move { drop(stream.write_all(&bytes).await) }))
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    proptest! {
        #[test]
        fn what_is_no_http2_ends_in_an_error(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            prop_assert!(ask_one_that_says(&runtime(), bytes).is_err());
        }

        #[test]
        fn any_frames_end_in_an_answer_or_an_error(frames in prop::collection::vec(frame(), 0..12)) {
            let bytes = [SETTINGS.to_vec(), frames.concat()].concat();
            if let Ok(answer) = ask_one_that_says(&runtime(), bytes) {
                prop_assert!(answer.len() <= MAX_ANSWER);
            }
        }
    }
}
