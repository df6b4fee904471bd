//! `/machine/map`: a lite update, one netmap, or a stream of them.

use std::time::Duration;

use bytes::Bytes;
use h2::SendStream;
use h2::server::SendResponse;
use http::{Response, StatusCode};
use nixtail_proto::key::MachinePublic;
use nixtail_proto::tailcfg::{MapRequest, MapResponse, NodeId};
use rand::RngExt as _;
use serde::Serialize;

use super::calls::{refuse, send};
use super::zstd;
use crate::error::ConnectionError;
use crate::netmap::View;
use crate::tailnet::Tailnet;

/// From which capability version on a streaming request changes nothing that control knows of the node: Tailscale's
/// own server heeds only lite updates then (`tailcfg.MapRequest.Stream`).
const READ_ONLY_STREAMS: u16 = 68;
/// The time between keep-alives, in seconds, somewhere in between so that nodes don't all speak at once.
const KEEP_ALIVE: std::ops::Range<u64> = 50..60;
/// How long changes are collected before they are told.
const COALESCE: Duration = Duration::from_millis(10);

/// Answers a map request of `machine`.
pub(super) async fn answer(
    mut respond: SendResponse<Bytes>,
    request: &MapRequest,
    machine: MachinePublic,
    tailnet: &Tailnet,
) -> Result<(), ConnectionError> {
    let Some(id) = tailnet.find(machine, request.node_key) else {
        return refuse(&mut respond, StatusCode::NOT_FOUND, "node not found".to_owned()).await;
    };
    take_in(request, machine, tailnet);
    let body = respond.send_response(Response::new(()), false)?;
    let mut messages = Messages { body, compress: request.compress == "zstd" };
    if request.stream {
        stream(&mut messages, id, request.keep_alive, tailnet).await
    } else {
        if !request.omit_peers {
            let Some(view) = tailnet.view(id) else { return Ok(()) };
            messages.send(&view.first(tailnet.time())).await?;
        }
        messages.end().await
    }
}

/// Takes over what a map request tells of its node.
pub(super) fn take_in(request: &MapRequest, machine: MachinePublic, tailnet: &Tailnet) {
    if (!request.stream || request.version < READ_ONLY_STREAMS)
        && let Some(id) = tailnet.find(machine, request.node_key)
    {
        tailnet.update(id, request);
    }
}

/// Tells the netmap and its changes, until the node or its connection is gone, or has another stream.
async fn stream(
    messages: &mut Messages,
    id: NodeId,
    keep_alive: bool,
    tailnet: &Tailnet,
) -> Result<(), ConnectionError> {
    let mut changed = tailnet.subscribe();
    let stream = tailnet.open_stream(id);
    let conduct = tailnet.conduct();
    let mut told: Option<View> = None;
    loop {
        if !conduct.is_silent() {
            let view = tailnet.view(id).filter(|_| stream.is_newest());
            let Some(view) = view else { return messages.end().await };
            match &told {
                None => {
                    let first = view.first(tailnet.time());
                    match conduct.edit_first_map(id, &first) {
                        Some(edited) => messages.send(&edited?).await?,
                        None => messages.send(&first).await?,
                    }
                    told = Some(view);
                }
                Some(_) if conduct.holds_changes() => {}
                Some(before) => {
                    if let Some(message) = view.changes(before) {
                        messages.send(&message).await?;
                    }
                    told = Some(view);
                }
            }
            for message in conduct.take_queued(id) {
                messages.send(&message).await?;
            }
        }

        loop {
            let pause = Duration::from_secs(rand::rngs::StdRng::random_range(&mut rng()?, KEEP_ALIVE));
            tokio::select! {
                _ = changed.changed() => break,
                () = messages.reset() => return Err(ConnectionError::Closed),
                () = tokio::time::sleep(pause) => {
                    if keep_alive && !conduct.is_silent() {
                        let control_time = Some(tailnet.time());
                        messages.send(&MapResponse { keep_alive: true, control_time, ..Default::default() }).await?;
                    }
                }
            }
        }
        tokio::time::sleep(COALESCE).await;
        changed.mark_unchanged();
    }
}

fn rng() -> Result<rand::rngs::StdRng, ConnectionError> {
    crate::random::rng().map_err(ConnectionError::Random)
}

/// The body of an answer: messages, each with its length before it.
struct Messages {
    body: SendStream<Bytes>,
    compress: bool,
}

impl Messages {
    async fn send(&mut self, message: &impl Serialize) -> Result<(), ConnectionError> {
        let json = serde_json::to_vec(message)?;
        let payload = if self.compress { zstd::frame(&json) } else { json };
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let mut bytes = Vec::with_capacity(payload.len() + 4);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&payload);
        send(&mut self.body, bytes.into(), false).await
    }

    async fn end(&mut self) -> Result<(), ConnectionError> {
        send(&mut self.body, Bytes::new(), true).await
    }

    /// Waits until the client gives the call up, or its connection is gone.
    async fn reset(&mut self) {
        let _ = std::future::poll_fn(|cx| self.body.poll_reset(cx)).await;
    }
}
