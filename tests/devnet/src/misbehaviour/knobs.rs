//! What tests turn on a [`Devnet`].

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use nixtail_proto::tailcfg::{Node, NodeId, PingRequest, Timestamp, TkaInfo};
use serde_json::{Value, json};

use super::{Call, Misbehaviour, RecordedCall};
use crate::registry::Registry;
use crate::{Crowd, Devnet, DevnetError, LoginPolicy, NodeStatus};

/// What a node answered to a ping of control.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PingAnswer {
    /// `HEAD` or `POST`.
    pub method: String,
    /// For c2n: a whole HTTP response.
    pub body: Vec<u8>,
}

/// Calls: late, refused, cut.
impl Devnet {
    /// The next `times` calls of this kind, whoever makes them, meet `misbehaviour`, after what was told before.
    pub fn misbehave(&self, call: Call, misbehaviour: Misbehaviour, times: usize) {
        self.tailnet.conduct().order(call, misbehaviour, times);
    }

    /// Forgets what [`Self::misbehave`] was told and no call has met yet.
    pub fn behave(&self) {
        self.tailnet.conduct().behave();
    }

    /// The calls of this kind of late, oldest first, as they came inside ts2021; also those that weren't served.
    #[must_use]
    pub fn calls(&self, call: Call) -> Vec<RecordedCall> {
        self.tailnet.conduct().recorded(call)
    }

    /// Sends the early payload behind the Noise handshake, or doesn't. It does at first.
    pub fn send_early_payload(&self, on: bool) {
        self.control.send_early_payload(on);
    }

    /// Gives control another key and cuts all connections: what nodes know from `/key` is wrong then.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn rotate_control_key(&self) -> Result<(), DevnetError> {
        self.control.rotate_key().map_err(DevnetError::Random)?;
        self.disconnect_all_streams();
        Ok(())
    }
}

/// Nodes: logins, approval, expiry, removal.
impl Devnet {
    /// The node whose name begins with this label.
    #[must_use]
    pub fn node(&self, label: &str) -> Option<NodeStatus> {
        self.nodes().into_iter().find(|node| node.name.split('.').next() == Some(label))
    }

    /// What happens to nodes that come without an auth key. They are refused at first.
    pub fn set_login_policy(&self, policy: LoginPolicy) {
        self.tailnet.administer(|registry, _| registry.set_login_policy(policy));
    }

    /// The URLs where a person is awaited, oldest first. Opening one (GET) finishes the login, too.
    #[must_use]
    pub fn waiting_logins(&self) -> Vec<String> {
        self.tailnet.look(Registry::waiting_logins)
    }

    /// Waits until a person is awaited, and returns the oldest URL.
    ///
    /// # Errors
    /// When that isn't so within `patience`.
    pub async fn wait_for_login(&self, patience: Duration) -> Result<String, DevnetError> {
        let mut changed = self.tailnet.subscribe();
        let found = async {
            loop {
                if let Some(url) = self.waiting_logins().into_iter().next() {
                    return url;
                }
                // The sender lives as long as `self`.
                let _ = changed.changed().await;
            }
        };
        let what = || "a node that wants a person to log in".to_owned();
        tokio::time::timeout(patience, found).await.map_err(|_| DevnetError::Timeout(patience, what()))
    }

    /// A person logs in at `url`: the node is let in.
    ///
    /// # Errors
    /// When nobody is awaited there.
    pub fn complete_login(&self, url: &str) -> Result<(), DevnetError> {
        self.finish_login(url, None)
    }

    /// A person is refused at `url`: the node is, with these words.
    ///
    /// # Errors
    /// As [`Self::complete_login`].
    pub fn refuse_login(&self, url: &str, words: &str) -> Result<(), DevnetError> {
        self.finish_login(url, Some(words))
    }

    /// Puts another URL in the place of one: the node's follow-up is answered with the new one, which is returned.
    ///
    /// # Errors
    /// As [`Self::complete_login`].
    pub fn replace_login(&self, url: &str) -> Result<String, DevnetError> {
        let replaced = self.tailnet.administer(|registry, _| registry.replace_login(url));
        replaced.ok_or_else(|| DevnetError::UnknownLogin(url.to_owned()))
    }

    fn finish_login(&self, url: &str, refused: Option<&str>) -> Result<(), DevnetError> {
        if self.tailnet.administer(|registry, _| registry.finish_login(url, refused)) {
            return Ok(());
        }
        Err(DevnetError::UnknownLogin(url.to_owned()))
    }

    /// From now on machines that are new must be approved (or not any more), except those whose auth key is
    /// `preauthorized`.
    pub fn require_approval(&self, needed: bool) {
        self.tailnet.administer(|registry, _| registry.require_approval(needed));
    }

    /// Approves a machine.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn approve(&self, id: NodeId) -> Result<(), DevnetError> {
        self.tailnet.administer(|registry, _| registry.approve(id)).ok_or(DevnetError::UnknownNode(id))
    }

    /// Ends a node's key at once: it and its peers are told, and its next registration with that key is answered with
    /// `NodeKeyExpired`.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn expire_key(&self, id: NodeId) -> Result<(), DevnetError> {
        self.set_key_expiry(id, self.tailnet.time())
    }

    /// Sets when a node's key ends, by control's clock; [`Timestamp::ZERO`] is never.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn set_key_expiry(&self, id: NodeId, end: Timestamp) -> Result<(), DevnetError> {
        let time = self.tailnet.time();
        let done = self.tailnet.administer(|registry, _| registry.set_key_expiry(time, id, end));
        done.ok_or(DevnetError::UnknownNode(id))
    }

    /// Control's clock.
    #[must_use]
    pub fn time(&self) -> Timestamp {
        self.tailnet.time()
    }

    /// Puts control's clock so many seconds before (or behind) that of this machine. Streams are told with their first
    /// message and each keep-alive.
    pub fn shift_clock(&self, seconds: i64) {
        self.tailnet.shift_clock(seconds);
    }

    /// Removes a node, as an admin does: its stream ends, and its map requests get 404.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn delete_node(&self, id: NodeId) -> Result<(), DevnetError> {
        self.tailnet.administer(|registry, _| registry.delete(id)).ok_or(DevnetError::UnknownNode(id))
    }

    /// Switches tailnet lock on with this head, or off. Nobody signs anything.
    pub fn set_lock(&self, head: Option<&str>) {
        let (head, disabled) = (head.unwrap_or_default().to_owned(), head.is_none());
        self.tailnet.set_lock(TkaInfo { head, disabled });
    }

    /// Makes nodes up, and returns their numbers. They are in netmaps as the policy says, but not in [`Self::nodes`].
    ///
    /// # Errors
    /// When there isn't room for that many.
    pub fn add_crowd(&self, crowd: &Crowd) -> Result<Vec<NodeId>, DevnetError> {
        let time = self.tailnet.time();
        self.tailnet.administer(|registry, _| registry.add_crowd(time, crowd)).ok_or(DevnetError::TooManyNodes)
    }

    /// Changes a node that was made up; whoever sees it is told.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn change_made_up(&self, id: NodeId, change: impl FnOnce(&mut Node)) -> Result<(), DevnetError> {
        let done = self.tailnet.administer(|registry, _| registry.change_made_up(id, change));
        done.ok_or(DevnetError::UnknownNode(id))
    }

    /// Removes a node that was made up; whoever saw it is told.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn remove_made_up(&self, id: NodeId) -> Result<(), DevnetError> {
        self.tailnet.administer(|registry, _| registry.remove_made_up(id)).ok_or(DevnetError::UnknownNode(id))
    }
}

/// Map streams: dropped, silent, with words put into their mouths.
impl Devnet {
    /// Ends a node's map stream; its connection stays. The node may open another at once.
    ///
    /// # Errors
    /// When it has none.
    pub fn drop_stream(&self, id: NodeId) -> Result<(), DevnetError> {
        let time = self.tailnet.time();
        let done = self.tailnet.administer(|registry, now| registry.drop_stream(now, time, id));
        done.ok_or(DevnetError::NoStream(id))
    }

    /// Lets all map streams fall silent: no message, no keep-alive, no end, not even for a node that was deleted. Switched
    /// off again, they tell what they missed.
    pub fn silence_streams(&self, on: bool) {
        self.tailnet.conduct().set_silent(on);
        self.tailnet.ring();
    }

    /// Keeps changes back from all map streams; first messages, keep-alives and [`Self::send_message`] go on.
    pub fn hold_changes(&self, on: bool) {
        self.tailnet.conduct().set_held(on);
        self.tailnet.ring();
    }

    /// Sends `message` on a node's map stream as it stands, after what it was sent before. What control itself says later
    /// doesn't know of it.
    ///
    /// # Errors
    /// When the node has no stream, or doesn't read.
    pub fn send_message(&self, id: NodeId, message: Value) -> Result<(), DevnetError> {
        if !self.tailnet.look(|registry| registry.has_stream(id)) || !self.tailnet.conduct().queue(id, message) {
            return Err(DevnetError::NoStream(id));
        }
        self.tailnet.ring();
        Ok(())
    }

    /// Lets `edit` change the first message of each map stream from now on: whose, and its JSON. What control itself says
    /// later doesn't know of it.
    pub fn edit_first_maps(&self, edit: impl Fn(NodeId, &mut Value) + Send + Sync + 'static) {
        self.tailnet.conduct().set_first_map_edit(Some(Arc::new(edit)));
    }

    /// First messages are the truth again.
    pub fn keep_first_maps(&self) {
        self.tailnet.conduct().set_first_map_edit(None);
    }

    /// Sends a [`PingRequest`] to a node and waits for what it answers. Its `url` is replaced; an empty `types` wants a HEAD
    /// request.
    ///
    /// # Errors
    /// When the node has no stream, or answers nothing within `patience`.
    pub async fn ping(&self, id: NodeId, request: PingRequest, patience: Duration) -> Result<PingAnswer, DevnetError> {
        let (path, answer) = self.tailnet.conduct().await_ping();
        let request = PingRequest { url: format!("https://unused{path}"), url_is_noise: true, ..request };
        self.send_message(id, json!({ "PingRequest": request }))?;
        let late = || DevnetError::Timeout(patience, "a node's answer to a ping".to_owned());
        tokio::time::timeout(patience, answer).await.ok().and_then(Result::ok).ok_or_else(late)
    }

    /// Sends a raw HTTP/1.1 request to a node (c2n) and waits for the raw response.
    ///
    /// # Errors
    /// As [`Self::ping`].
    pub async fn c2n(&self, id: NodeId, request: &[u8], patience: Duration) -> Result<Vec<u8>, DevnetError> {
        let payload = BASE64_STANDARD.encode(request);
        let ping = PingRequest { types: "c2n".to_owned(), payload, ..PingRequest::default() };
        Ok(self.ping(id, ping, patience).await?.body)
    }
}
