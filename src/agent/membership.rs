//! What joins control and the dataplane: netmaps go one way, what this node learned of itself the other.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, FutureExt as _, OptionFuture};
use nixtail_proto::netmap::{DerpRegions, Netmap};
use nixtail_proto::tailcfg::RegionId;
use tokio::sync::{mpsc, oneshot, watch};

use super::status::State;
use crate::control::{Control, ControlError, ControlStatus, Update};
use crate::net::dataplane::{Command, Facts};
use crate::net::stun_servers;
use crate::report::told::{Change, MOMENT, Told};

/// Orders that wait. There are few of them.
const ORDERS: usize = 8;

/// The task that keeps control and the dataplane informed of each other.
#[derive(Debug)]
pub(super) struct Membership {
    orders: mpsc::Sender<Order>,
    told: watch::Receiver<bool>,
    state: watch::Receiver<State>,
    netmap: watch::Receiver<Option<Arc<Netmap>>>,
    refused: watch::Receiver<Option<String>>,
    control: watch::Receiver<ControlStatus>,
}

enum Order {
    SshHostKeys(Vec<String>),
    End { deadline: Duration, log_out: bool, reply: oneshot::Sender<Result<(), ControlError>> },
}

impl Membership {
    /// Starts the task. It ends with [`Self::end`], or when this is dropped.
    pub(super) fn start(control: Control, commands: mpsc::Sender<Command>, facts: watch::Receiver<Facts>) -> Self {
        let (orders, inbox) = mpsc::channel(ORDERS);
        let (state_sender, state) = watch::channel(State::Running);
        let (told_sender, told) = watch::channel(false);
        let (published, published_netmap) = watch::channel(None);
        let (refused_sender, refused) = watch::channel(None);
        let (netmap, control_status) = (control.netmap(), control.status());
        let task = Task {
            control,
            commands,
            facts,
            netmap,
            published,
            state: state_sender,
            told: told_sender,
            refused: refused_sender,
            link: Told::default(),
            known_relays: None,
            resolving: None.into(),
        };
        tokio::spawn(task.run(inbox));
        Self { orders, told, state, netmap: published_netmap, refused, control: control_status }
    }

    /// Where the node is in its life.
    pub(super) fn state(&self) -> State {
        *self.state.borrow()
    }

    /// The netmap as the dataplane has it: who sees a peer in it can dial that peer.
    pub(super) fn netmap(&self) -> watch::Receiver<Option<Arc<Netmap>>> {
        self.netmap.clone()
    }

    /// Whether control has taken what this node learned of itself, at least once.
    pub(super) fn told(&self) -> watch::Receiver<bool> {
        self.told.clone()
    }

    /// Why control doesn't let this node be a node any more, once that is so. It stays so.
    pub(super) fn refused(&self) -> watch::Receiver<Option<String>> {
        self.refused.clone()
    }

    /// Why there is no map stream, if there is none and something went wrong.
    pub(super) fn trouble(&self) -> Option<String> {
        let status = self.control.borrow();
        if status.connected_since.is_some() { None } else { status.last_error.clone() }
    }

    /// Publishes other SSH host keys.
    pub(super) async fn set_ssh_host_keys(&self, keys: Vec<String>) {
        // A task that is gone has nobody to tell.
        let _ = self.orders.send(Order::SshHostKeys(keys)).await;
    }

    /// Ends the connection to control, after a logout if that is wanted.
    pub(super) async fn end(&self, deadline: Duration, log_out: bool) -> Result<(), ControlError> {
        let (reply, answer) = oneshot::channel();
        // A task that is gone has logged out before.
        let _ = self.orders.send(Order::End { deadline, log_out, reply }).await;
        answer.await.unwrap_or(Ok(()))
    }
}

/// Whether there is a map stream.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Link {
    Up,
    /// Why there is none.
    Down(String),
}

impl Link {
    fn of(status: &ControlStatus) -> Self {
        match (status.connected_since, &status.last_error) {
            (None, Some(why)) => Self::Down(why.clone()),
            _ => Self::Up,
        }
    }
}

/// The log has that control is lost and that it is back; that it was there at the start goes without saying.
fn tell(change: &Change<Link>) {
    let more = change.more();
    match (&change.before, &change.state) {
        (None, Link::Up) => {}
        (Some(_), Link::Up) => tracing::info!(target: MOMENT, "control is back{more}"),
        (None | Some(Link::Up), Link::Down(why)) => {
            tracing::warn!(target: MOMENT, "control is lost, peers stay reachable: {why}{more}");
        }
        (Some(Link::Down(_)), Link::Down(why)) => {
            tracing::warn!(target: MOMENT, "control is still lost: {why}{more}");
        }
    }
}

struct Task {
    control: Control,
    commands: mpsc::Sender<Command>,
    facts: watch::Receiver<Facts>,
    netmap: watch::Receiver<Option<Arc<Netmap>>>,
    published: watch::Sender<Option<Arc<Netmap>>>,
    state: watch::Sender<State>,
    told: watch::Sender<bool>,
    refused: watch::Sender<Option<String>>,
    link: Told<Link>,
    known_relays: Option<Arc<DerpRegions>>,
    // The look-up of the newest DERP map's STUN servers.
    resolving: OptionFuture<BoxFuture<'static, Vec<(RegionId, std::net::SocketAddr)>>>,
}

impl Task {
    async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        self.netmap.mark_changed();
        self.facts.mark_changed();
        let mut acknowledgements = self.control.acknowledgements();
        let mut status = self.control.status();
        let mut is_refused = false;
        loop {
            let told_again = self.link.poll_timeout();
            tokio::select! {
                order = orders.recv() => match order {
                    Some(Order::SshHostKeys(keys)) => {
                        self.control.update(Update { ssh_host_keys: Some(keys), ..Update::default() });
                    }
                    Some(Order::End { deadline, log_out, reply }) => {
                        self.state.send_replace(State::Leaving);
                        let ended = if log_out {
                            self.control.logout(deadline).await
                        } else {
                            self.control.close().await;
                            Ok(())
                        };
                        // An asker that went away doesn't want to know.
                        let _ = reply.send(ended);
                        return;
                    }
                    None => return,
                },
                // What came before the refusal counts no more.
                Ok(()) = self.netmap.changed(), if !is_refused => {
                    let netmap = self.netmap.borrow_and_update().clone();
                    if let Some(netmap) = netmap {
                        self.apply(netmap).await;
                    }
                }
                Ok(()) = self.facts.changed() => {
                    let facts = self.facts.borrow_and_update().clone();
                    self.control.update(Update {
                        endpoints: facts.endpoints,
                        net_info: facts.net_info,
                        ssh_host_keys: None,
                    });
                    self.look_whether_told();
                }
                () = acknowledgements.next() => self.look_whether_told(),
                Ok(()) = status.changed() => {
                    let status = status.borrow_and_update().clone();
                    if let Some(reason) = status.refused.clone() {
                        is_refused = true;
                        self.handle_refusal(reason).await;
                    } else {
                        let is_connected = status.connected_since.is_some();
                        self.state.send_replace(if is_connected { State::Running } else { State::ControlLost });
                        self.link.set(Instant::now(), Link::of(&status)).iter().for_each(tell);
                        // A dataplane that is gone has no home to keep.
                        let _ = self.commands.send(Command::HasControl(is_connected)).await;
                    }
                }
                () = tokio::time::sleep_until(told_again.unwrap_or_else(Instant::now).into()), if told_again.is_some() => {
                    self.link.poll(Instant::now()).iter().for_each(tell);
                }
                Some(servers) = &mut self.resolving => {
                    self.resolving = None.into();
                    // A dataplane that is gone probes nothing.
                    let _ = self.commands.send(Command::StunServers(servers)).await;
                }
            }
        }
    }

    /// Gives the dataplane a netmap, and then everybody else.
    async fn apply(&mut self, netmap: Arc<Netmap>) {
        if self.known_relays.as_ref() != Some(&netmap.derp_map) {
            self.known_relays = Some(netmap.derp_map.clone());
            let regions = netmap.derp_map.clone();
            self.resolving = Some(async move { stun_servers::resolve(&regions).await }.boxed()).into();
        }
        if self.commands.send(Command::Netmap(netmap.clone())).await.is_err() {
            tracing::debug!("the dataplane has ended before the membership");
        }
        // Only now: a dial that follows from it queues behind it.
        self.published.send_replace(Some(netmap));
    }

    /// A node that control won't have mustn't go by the last policy that it heard: no peers, and nobody is let in.
    async fn handle_refusal(&mut self, reason: String) {
        tracing::error!(target: MOMENT, "this node is off the tailnet: {reason}");
        self.state.send_replace(State::Refused);
        self.refused.send_replace(Some(reason));
        let self_node = self.published.borrow().as_ref().map(|netmap| netmap.self_node.clone()).unwrap_or_default();
        self.apply(Arc::new(Netmap { self_node, ..Netmap::default() })).await;
    }

    /// Peers can find us once control has taken where we are.
    fn look_whether_told(&self) {
        let knows_itself = self.facts.borrow().endpoints.is_some();
        if knows_itself && self.control.is_told() {
            self.told.send_replace(true);
        }
    }
}
