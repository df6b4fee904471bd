//! The map stream and what goes the other way: updates and answers to control's pings.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use h2::RecvStream;
use http::Method;
use nixtail_proto::control::{
    AnswerError, LiteUpdates, MapFrames, MapSession, PingAnswer, WATCHDOG, answer_ping, decompress,
};
use nixtail_proto::netmap::Netmap;
use nixtail_proto::tailcfg::PingRequest;
use rand::rngs::StdRng;
use reqwest::Url;
use tokio::sync::watch;
use tokio::time::{sleep_until, timeout};

use super::client::Client;
use super::description::Description;
use super::{ControlConfig, ControlError, clock};
use crate::agent::Stage;

const MAP: &str = "/machine/map";
/// How long control may take over an update.
const UPDATE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long we try to answer a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// Pings being answered at once; more are left unanswered.
const MAX_PINGS: usize = 4;
/// How often keys are looked at that end without a message.
const CLOCK_INTERVAL: Duration = Duration::from_secs(30);

/// Follows a map stream until it breaks, publishing each netmap.
pub(super) async fn follow(
    client: &Client,
    config: &ControlConfig,
    description: &Description,
    session: &mut MapSession,
    netmap: &watch::Sender<Option<Arc<Netmap>>>,
    on_message: impl Fn(),
) -> Result<Infallible, ControlError> {
    let request = description.map_request(config.node_key, config.disco_key, true);
    let request =
        serde_json::to_vec(&request).map_err(|error| ControlError::protocol(&client.server().authority(), error))?;
    session.handle_stream_opened(Instant::now());
    let opened = client.open(Method::POST, MAP, request.into());
    let mut body = client.within("the map stream", WATCHDOG, opened).await?.into_body();
    session.handle_sign_of_life(Instant::now());

    let mut frames = MapFrames::default();
    let mut pings = FuturesUnordered::new();
    let mut clock_ticks = tokio::time::interval(CLOCK_INTERVAL);
    loop {
        let deadline = session.poll_timeout().unwrap_or_else(Instant::now);
        tokio::select! {
            chunk = next_chunk(&mut body) => {
                let ended = || ControlError::protocol(&client.server().authority(), "it ended the map stream");
                frames.handle_bytes(&chunk?.ok_or_else(ended)?);
                session.handle_sign_of_life(Instant::now());
                while let Some(message) = frames.poll_message()? {
                    let json = decompress(message)?;
                    let message = session.handle_message(clock(), &json)?;
                    if message.changes.is_some() {
                        config.stages.mark(Stage::FirstMap);
                        netmap.send_replace(session.netmap().cloned());
                    }
                    on_message();
                    if let Some(url) = message.open_url {
                        tracing::warn!(url, "control asks you to open a page");
                    }
                    if let Some(ping) = message.ping.filter(|_| pings.len() < MAX_PINGS) {
                        pings.push(timeout(PING_TIMEOUT, answer(client, config, ping)));
                    }
                }
            }
            Some(answered) = pings.next() => {
                if !matches!(answered, Ok(Ok(()))) {
                    tracing::debug!("a ping from control could not be answered");
                }
            }
            _ = clock_ticks.tick() => {
                if session.handle_clock(clock()).is_some() {
                    netmap.send_replace(session.netmap().cloned());
                }
            }
            () = sleep_until(deadline.into()) => {
                let server = client.server().authority();
                return Err(ControlError::Timeout { server, what: "the map stream fell silent", after: WATCHDOG });
            }
        }
    }
}

/// Tells control what changes of us, for ever, beginning with all of it: what the map stream's request said may not
/// count. Ends only when control doesn't know us any more, or with the connection.
pub(super) async fn tell(
    client: &Client,
    config: &ControlConfig,
    mut description: watch::Receiver<Description>,
    acknowledged: &watch::Sender<Option<Description>>,
) -> Result<Infallible, ControlError> {
    let mut updates = LiteUpdates::default();
    let mut rng = rand::make_rng::<StdRng>();
    updates.handle_wanted(description.borrow_and_update().clone());
    loop {
        while let Some(wanted) = updates.poll_request(Instant::now()) {
            let request = wanted.map_request(config.node_key, config.disco_key, false);
            match client.post(MAP, &request, "an update", UPDATE_TIMEOUT).await {
                Ok(_) => {
                    updates.handle_done();
                    acknowledged.send_replace(Some(wanted));
                }
                Err(error @ ControlError::Answer(AnswerError::NotRegistered)) => return Err(error),
                // The map stream may go on, and control would hear nothing of us any more.
                Err(error) if error.ends_connection() => return Err(error),
                Err(error) => {
                    tracing::debug!(%error, "control didn't take an update");
                    updates.handle_failed(Instant::now(), error.retry_after().unwrap_or_default(), &mut rng);
                }
            }
            if description.has_changed().unwrap_or(false) {
                updates.handle_wanted(description.borrow_and_update().clone());
            }
        }
        let retry = async {
            match updates.poll_timeout() {
                Some(at) => sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = retry => {}
            changed = description.changed() => match changed {
                Ok(()) => updates.handle_wanted(description.borrow_and_update().clone()),
                // Nobody can change it any more; the map stream goes on.
                Err(_) => std::future::pending().await,
            }
        }
    }
}

async fn next_chunk(body: &mut RecvStream) -> Result<Option<bytes::Bytes>, ControlError> {
    let Some(chunk) = body.data().await.transpose()? else { return Ok(None) };
    body.flow_control().release_capacity(chunk.len())?;
    Ok(Some(chunk))
}

/// Answers a ping: inside this connection where control says so, else by plain HTTP(S), as in Go. One that is to be answered
/// anywhere but at control isn't: it could make us call anybody.
async fn answer(client: &Client, config: &ControlConfig, ping: PingRequest) -> Result<(), ControlError> {
    let error = || ControlError::protocol(&client.server().authority(), "a ping that names no URL");
    let url = Url::parse(&ping.url).map_err(|_| error())?;
    let is_inside = ping.url_is_noise || ping.types == "c2n";
    if !is_inside && !client.server().is_origin_of(&url) {
        return Ok(());
    }
    let requests = match answer_ping(&ping) {
        PingAnswer::Head => vec![(Method::HEAD, Vec::new())],
        PingAnswer::Posts(answers) => answers.into_iter().map(|answer| (Method::POST, answer)).collect(),
    };
    let path = match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    };
    for (method, body) in requests {
        if is_inside {
            client.send_raw(method, &path, body).await?;
        } else {
            client.server().send_outside(&config.proxies, method, url.clone(), body).await?;
        }
    }
    Ok(())
}
