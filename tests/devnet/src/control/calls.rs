//! The calls inside ts2021: `/machine/register` and `/machine/map`, over HTTP/2.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{Method, Request, Response, StatusCode};
use nixtail_proto::tailcfg::{MapRequest, RegisterRequest};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::map_stream;
use super::ts2021::{Client, NoiseStream};
use crate::error::ConnectionError;
use crate::misbehaviour::{Answer, Call, Misbehaviour, PingAnswer};
use crate::tailnet::Tailnet;

/// The oldest capability version that is served, as in headscale 0.27.
const MIN_VERSION: u16 = 90;
/// The longest request body. A node's description is a few KiB.
const MAX_BODY: usize = 1 << 20;
/// Most calls at a time on one connection: a map stream, and updates beside it.
const MAX_CALLS: u32 = 64;
/// The longest header list.
const MAX_HEADERS: u32 = 16 << 10;
/// How long a request body may take, and each piece of an answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Serves the calls of one connection until the client leaves or `cut` is cancelled.
pub(super) async fn serve(
    stream: NoiseStream,
    client: Client,
    tailnet: &Arc<Tailnet>,
    tasks: &TaskTracker,
    cut: &CancellationToken,
) -> Result<(), ConnectionError> {
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(MAX_CALLS).max_header_list_size(MAX_HEADERS);
    let mut connection = tokio::time::timeout(PATIENCE, builder.handshake::<_, Bytes>(stream)).await??;
    while let Some(call) = connection.accept().await {
        let (request, respond) = call?;
        let (tailnet, cut) = (Arc::clone(tailnet), cut.clone());
        tasks.spawn(async move {
            let ended = tokio::select! {
                () = cut.cancelled() => return,
                ended = answer(request, respond, client, &tailnet, &cut) => ended,
            };
            if let Err(error) = ended {
                tracing::debug!(machine = ?client.machine, %error, "devnet control: call ended");
            }
        });
    }
    Ok(())
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    client: Client,
    tailnet: &Tailnet,
    cut: &CancellationToken,
) -> Result<(), ConnectionError> {
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    tracing::debug!(machine = ?client.machine, version = client.version, %path, "devnet control: call");
    let body = tokio::time::timeout(PATIENCE, read(body)).await??;
    let call = match (&head.method, path) {
        (&Method::POST, "/machine/register") => Call::Register,
        (&Method::POST, "/machine/map") => kind_of_map(&body),
        (method, path) if path.starts_with("/machine/ping/") => {
            let pong = PingAnswer { method: method.to_string(), body: body.to_vec() };
            let awaited = tailnet.conduct().handle_ping_answer(path, pong);
            let status = if awaited { StatusCode::OK } else { StatusCode::NOT_FOUND };
            return refuse(&mut respond, status, String::new()).await;
        }
        _ => return refuse(&mut respond, StatusCode::NOT_FOUND, format!("a devnet doesn't serve {path}")).await,
    };
    let conduct = tailnet.conduct();
    conduct.record(call, client.machine, client.version, &body);
    match conduct.next(call) {
        None => {}
        Some(Misbehaviour::Delay(pause)) => tokio::time::sleep(pause).await,
        Some(Misbehaviour::Answer(answer)) => return send_answer(&mut respond, answer).await,
        Some(Misbehaviour::Silence) => {
            gone(&mut respond).await;
            return Ok(());
        }
        Some(Misbehaviour::Cut) => {
            cut.cancel();
            return Ok(());
        }
        Some(Misbehaviour::LoseAnswer) => {
            take_in(call, &body, client, tailnet);
            cut.cancel();
            return Ok(());
        }
    }
    let refusal = match call {
        Call::Register => match decode::<RegisterRequest>(&body, |request| request.version) {
            Ok(request) => return register(respond, &request, client, tailnet).await,
            Err(refusal) => refusal,
        },
        _ => match decode::<MapRequest>(&body, |request| request.version) {
            Ok(request) => return map_stream::answer(respond, &request, client.machine, tailnet).await,
            Err(refusal) => refusal,
        },
    };
    refuse(&mut respond, refusal.0, refusal.1).await
}

/// Does what a call asks for, without an answer.
fn take_in(call: Call, body: &[u8], client: Client, tailnet: &Tailnet) {
    if call == Call::Register {
        if let Ok(request) = decode::<RegisterRequest>(body, |request| request.version) {
            tailnet.register(client.machine, &request);
        }
    } else if let Ok(request) = decode::<MapRequest>(body, |request| request.version) {
        map_stream::take_in(&request, client.machine, tailnet);
    }
}

/// A map request that makes no sense counts as one for a netmap.
fn kind_of_map(body: &[u8]) -> Call {
    let request = serde_json::from_slice::<MapRequest>(body).unwrap_or_default();
    if request.omit_peers && !request.stream { Call::Update } else { Call::Map }
}

/// Answers a registration. The end of a person's login is waited for, as long as the client does.
async fn register(
    mut respond: SendResponse<Bytes>,
    request: &RegisterRequest,
    client: Client,
    tailnet: &Tailnet,
) -> Result<(), ConnectionError> {
    let mut changed = tailnet.subscribe();
    let response = loop {
        if let Some(response) = tailnet.register(client.machine, request) {
            break response;
        }
        tokio::select! {
            _ = changed.changed() => {}
            () = gone(&mut respond) => return Ok(()),
        }
    };
    let (machine, node, error) = (client.machine, request.node_key, &response.error);
    tracing::debug!(?machine, ?node, error, "devnet control: registered");
    send_answer(&mut respond, Answer::json(&serde_json::to_value(&response)?)).await
}

type Refusal = (StatusCode, String);

fn decode<T: DeserializeOwned>(body: &[u8], version: impl Fn(&T) -> u16) -> Result<T, Refusal> {
    let request = serde_json::from_slice(body)
        .map_err(|error| (StatusCode::BAD_REQUEST, format!("the request's JSON makes no sense: {error}")))?;
    match version(&request) {
        version if version < MIN_VERSION => Err((
            StatusCode::BAD_REQUEST,
            format!("unsupported client version: capability version {version}, at least {MIN_VERSION} is needed"),
        )),
        _ => Ok(request),
    }
}

/// Answers with a status and a text.
pub(super) async fn refuse(
    respond: &mut SendResponse<Bytes>,
    status: StatusCode,
    text: String,
) -> Result<(), ConnectionError> {
    send_answer(respond, Answer::text(status.as_u16(), &text)).await
}

async fn send_answer(respond: &mut SendResponse<Bytes>, answer: Answer) -> Result<(), ConnectionError> {
    let mut response = Response::builder().status(answer.status);
    for (name, value) in &answer.headers {
        response = response.header(name, value);
    }
    let response = response.body(()).map_err(ConnectionError::Answer)?;
    send(&mut respond.send_response(response, false)?, answer.body.into(), true).await
}

/// Waits until the client gives the call up, or its connection is gone.
async fn gone(respond: &mut SendResponse<Bytes>) {
    let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
}

async fn read(mut body: RecvStream) -> Result<BytesMut, ConnectionError> {
    let mut all = BytesMut::new();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        if all.len() + piece.len() > MAX_BODY {
            return Err(ConnectionError::Http("a request body that is too long"));
        }
        body.flow_control().release_capacity(piece.len())?;
        all.extend_from_slice(&piece);
    }
    Ok(all)
}

/// Sends `data` as fast as the client's windows allow; one that opens none for [`PATIENCE`] is given up.
pub(super) async fn send(stream: &mut SendStream<Bytes>, mut data: Bytes, end: bool) -> Result<(), ConnectionError> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let capacity = tokio::time::timeout(PATIENCE, std::future::poll_fn(|cx| stream.poll_capacity(cx))).await?;
        let capacity = capacity.ok_or(ConnectionError::Closed)??;
        let piece = data.split_to(capacity.min(data.len()));
        let last = end && data.is_empty();
        stream.send_data(piece, last)?;
        if last {
            return Ok(());
        }
    }
    if end {
        stream.send_data(Bytes::new(), true)?;
    }
    Ok(())
}
