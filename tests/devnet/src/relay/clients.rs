//! Who is connected to a relay, and what waits to be written to each.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nixtail_proto::derp::{Frame, PeerGoneReason};
use nixtail_proto::key::NodePublic;
use tokio::sync::Notify;

/// Most packets that wait for one node; the oldest is dropped for a newer one (Go's `perClientSendQueueDepth`).
const MAX_PACKETS: usize = 32;
/// Most other frames that wait for one node, dropped in the same way; only a node that doesn't read has so many.
const MAX_CONTROL: usize = 64;
/// Most peers of which a node learns when they leave.
const MAX_CORRESPONDENTS: usize = 4096;

/// All connected nodes.
#[derive(Debug, Default)]
pub(super) struct Clients(Mutex<HashMap<NodePublic, Client>>);

#[derive(Debug)]
struct Client {
    queue: Arc<Queue>,
    /// Who has sent it something, and so is missed when gone.
    heard: HashSet<NodePublic>,
}

impl Clients {
    /// Puts a node in for as long as the entry lives. Its earlier connection, if there is one, is closed: most likely
    /// it is one that died unnoticed.
    pub(super) fn enter(&self, key: NodePublic, queue: &Arc<Queue>) -> Entry<'_> {
        let client = Client { queue: Arc::clone(queue), heard: HashSet::new() };
        if let Some(earlier) = self.lock().insert(key, client) {
            earlier.queue.close();
        }
        Entry { clients: self, key, queue: Arc::clone(queue) }
    }

    /// The queue of the node `to`, noting that `from` writes to it.
    pub(super) fn find_for(&self, to: NodePublic, from: NodePublic) -> Option<Arc<Queue>> {
        let mut clients = self.lock();
        let client = clients.get_mut(&to)?;
        if client.heard.len() < MAX_CORRESPONDENTS {
            client.heard.insert(from);
        }
        Some(Arc::clone(&client.queue))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodePublic, Client>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A node's place among the clients.
pub(super) struct Entry<'a> {
    clients: &'a Clients,
    key: NodePublic,
    queue: Arc<Queue>,
}

impl Drop for Entry<'_> {
    /// Takes the node out and tells those that heard from it, unless a newer connection has its place.
    fn drop(&mut self) {
        let mut clients = self.clients.lock();
        if !clients.get(&self.key).is_some_and(|client| Arc::ptr_eq(&client.queue, &self.queue)) {
            return;
        }
        clients.remove(&self.key);
        let mut gone = Vec::new();
        // A frame of a fixed, small size is always written.
        let _ = Frame::PeerGone { peer: self.key, reason: PeerGoneReason::Disconnected }.write(&mut gone);
        for client in clients.values_mut().filter_map(|client| client.heard.remove(&self.key).then_some(client)) {
            client.queue.push_control(gone.clone());
        }
    }
}

/// Encoded frames for one node.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    ready: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    control: VecDeque<Vec<u8>>,
    packets: VecDeque<Vec<u8>>,
    closed: bool,
}

impl Queue {
    pub(super) fn push_packet(&self, frame: Vec<u8>) {
        push(&mut self.lock().packets, MAX_PACKETS, frame);
        self.ready.notify_one();
    }

    pub(super) fn push_control(&self, frame: Vec<u8>) {
        push(&mut self.lock().control, MAX_CONTROL, frame);
        self.ready.notify_one();
    }

    fn close(&self) {
        self.lock().closed = true;
        self.ready.notify_one();
    }

    /// Waits for frames and appends them all to `out`. `false` when the queue was closed.
    pub(super) async fn take(&self, out: &mut Vec<u8>) -> bool {
        loop {
            {
                let mut waiting = self.lock();
                if waiting.closed {
                    return false;
                }
                let Waiting { control, packets, .. } = &mut *waiting;
                control.drain(..).chain(packets.drain(..)).for_each(|frame| out.extend_from_slice(&frame));
            }
            if !out.is_empty() {
                return true;
            }
            self.ready.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn push(queue: &mut VecDeque<Vec<u8>>, most: usize, frame: Vec<u8>) {
    if queue.len() >= most {
        queue.pop_front();
    }
    queue.push_back(frame);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> NodePublic {
        NodePublic::from_bytes([n; 32])
    }

    #[tokio::test]
    async fn the_oldest_packets_are_dropped() {
        let queue = Queue::default();
        for n in 0..=MAX_PACKETS {
            queue.push_packet(vec![u8::try_from(n).unwrap()]);
        }
        queue.push_control(vec![0xff]);
        let mut out = Vec::new();
        assert!(queue.take(&mut out).await);
        assert_eq!((out.len(), out[0], out[1]), (MAX_PACKETS + 1, 0xff, 1));
    }

    #[tokio::test]
    async fn those_who_heard_from_it_learn_that_it_left() {
        let clients = Clients::default();
        let (one, two) = (Arc::new(Queue::default()), Arc::new(Queue::default()));
        let entry = clients.enter(key(1), &one);
        let _stays = clients.enter(key(2), &two);
        assert!(clients.find_for(key(3), key(1)).is_none());
        assert!(clients.find_for(key(2), key(1)).is_some());

        // A second connection takes the place; the end of the first says nothing.
        let newer = Arc::new(Queue::default());
        let place = clients.enter(key(1), &newer);
        assert!(!one.take(&mut Vec::new()).await);
        drop(entry);
        assert!(clients.find_for(key(1), key(2)).is_some());
        assert!(two.lock().control.is_empty());

        drop(place);
        assert!(clients.find_for(key(1), key(2)).is_none());
        let mut out = Vec::new();
        assert!(two.take(&mut out).await);
        let gone = Frame::PeerGone { peer: key(1), reason: PeerGoneReason::Disconnected };
        assert_eq!(nixtail_proto::derp::parse(&out), Ok(Some((gone, out.len()))));
    }
}
