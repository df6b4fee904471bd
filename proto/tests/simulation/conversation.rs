//! What applications do in a history: one side sends known bytes now and then, the other sends them back, and every byte is
//! looked at. A stream that ends is followed by another.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nixtail_proto::node::Event;
use nixtail_proto::stack::{ConnectionError, ConnectionId, Read};

use crate::stream::{PERIOD, pattern};
use crate::world::{SECOND, World};

/// Where everybody echoes.
pub(crate) const PORT: u16 = 22;
/// A pause before the next dial, where the last one failed at once.
const REDIAL_AFTER: Duration = SECOND;
/// An answer after this long is one after an outage.
const OUTAGE: Duration = Duration::from_secs(8);

/// One who talks and one who echoes.
#[derive(Debug)]
pub(crate) struct Conversation {
    pub(crate) from: usize,
    pub(crate) to: usize,
    /// A message this often, if the last one has been echoed.
    pub(crate) every: Duration,
    /// Of so many bytes.
    pub(crate) bytes: u64,
    pub(crate) paused: bool,
    stream: Option<Stream>,
    next: Instant,
    /// Since when an echo is waited for, whatever became of streams meanwhile.
    pub(crate) wants_since: Option<Instant>,
    /// When bytes last came back.
    pub(crate) heard_at: Option<Instant>,
    /// When the last message was echoed, and since when that has gone on without a pause.
    pub(crate) echoed_at: Option<Instant>,
    pub(crate) busy_since: Option<Instant>,
    pub(crate) echoes: u64,
}

#[derive(Debug)]
struct Stream {
    id: ConnectionId,
    connected: bool,
    goal: u64,
    sent: u64,
    echoed: u64,
    /// Since when it owes an echo.
    waits_since: Option<Instant>,
}

/// All conversations of a world.
#[derive(Debug, Default)]
pub(crate) struct Application {
    pub(crate) conversations: Vec<Conversation>,
    /// What is to be echoed, by host and connection.
    echoed: BTreeMap<(usize, ConnectionId), Vec<u8>>,
    /// Streams that ended: which conversation's, and why.
    pub(crate) ended: Vec<(usize, Option<ConnectionError>)>,
}

impl Conversation {
    pub(crate) fn new(from: usize, to: usize, every: Duration, bytes: u64, begins: Instant) -> Self {
        Self {
            from,
            to,
            every,
            bytes,
            paused: false,
            stream: None,
            next: begins,
            wants_since: None,
            heard_at: None,
            echoed_at: None,
            busy_since: None,
            echoes: 0,
        }
    }

    /// Since when the stream that is open owes an echo.
    pub(crate) fn waits_since(&self) -> Option<Instant> {
        self.stream.as_ref()?.waits_since
    }

    fn tick(&mut self, world: &mut World) {
        let now = world.now;
        if self.paused && self.stream.is_none() {
            // Nobody tries.
            self.wants_since = None;
        }
        if now < self.next || self.paused || world.hosts[self.from].frozen {
            return;
        }
        if self.stream.is_none() {
            let remote = world.hosts[self.to].tailnet(PORT);
            self.wants_since.get_or_insert(now);
            match world.hosts[self.from].node.connect(now, remote) {
                Ok(id) => {
                    let (connected, sent, echoed) = (false, 0, 0);
                    self.stream =
                        Some(Stream { id, connected, goal: self.bytes, sent, echoed, waits_since: Some(now) });
                }
                Err(_) => self.next = now + REDIAL_AFTER,
            }
            world.pump_host(self.from);
            return;
        }
        if let Some(stream) = &mut self.stream
            && stream.echoed == stream.goal
        {
            stream.goal += self.bytes;
            stream.waits_since = Some(now);
            self.wants_since.get_or_insert(now);
            self.next = now + self.every;
            self.go_on(world);
        }
    }

    /// Writes what can be written, reads what is there.
    fn go_on(&mut self, world: &mut World) {
        let (now, every) = (world.now, self.every);
        let Some(stream) = self.stream.as_mut().filter(|stream| stream.connected) else { return };
        let node = &mut world.hosts[self.from].node;
        while stream.sent < stream.goal {
            let offset = usize::try_from(stream.sent % PERIOD as u64).unwrap();
            let length = usize::try_from(stream.goal - stream.sent).unwrap().min(PERIOD);
            // An error is told by an event, too.
            let Ok(taken) = node.write(now, stream.id, &pattern()[offset..offset + length]) else { break };
            stream.sent += taken as u64;
            if taken < length {
                break;
            }
        }
        let mut bytes = [0; 4 << 10];
        while let Ok(Read::Bytes(length)) = node.read(now, stream.id, &mut bytes) {
            let offset = usize::try_from(stream.echoed % PERIOD as u64).unwrap();
            let right = bytes[..length] == pattern()[offset..offset + length];
            assert!(right, "wrong bytes at {} from {} back to {}", stream.echoed, self.to, self.from);
            stream.echoed += length as u64;
            self.heard_at = Some(now);
            assert!(stream.echoed <= stream.sent, "more comes back than was sent");
        }
        if stream.echoed == stream.goal
            && let Some(since) = stream.waits_since.take()
        {
            if now - since > OUTAGE {
                world.note("a stream outlived an outage");
            }
            self.wants_since = None;
            self.echoes += 1;
            let goes_on = self.echoed_at.is_some_and(|last| now - last < every + 2 * SECOND);
            if !goes_on {
                self.busy_since = Some(now);
            }
            self.echoed_at = Some(now);
        }
        world.pump_host(self.from);
    }

    /// The talker's process has ended.
    fn lose_stream(&mut self, now: Instant) {
        self.stream = None;
        self.wants_since = self.wants_since.map(|_| now);
        self.next = self.next.min(now + REDIAL_AFTER).max(now);
    }
}

impl Application {
    /// A process begins.
    pub(crate) fn start(&mut self, world: &mut World, host: usize) {
        self.echoed.retain(|(server, _), _| *server != host);
        world.hosts[host].node.listen(PORT, 64).unwrap();
        for conversation in self.conversations.iter_mut().filter(|conversation| conversation.from == host) {
            conversation.lose_stream(world.now);
        }
    }

    /// Says what is to be said now.
    pub(crate) fn tick(&mut self, world: &mut World) {
        for conversation in &mut self.conversations {
            conversation.tick(world);
        }
    }

    /// Acts on what nodes have to say.
    pub(crate) fn handle_events(&mut self, world: &mut World) {
        for host in 0..world.hosts.len() {
            while !world.hosts[host].events.is_empty() {
                for event in std::mem::take(&mut world.hosts[host].events) {
                    self.handle_event(world, host, &event);
                }
                world.pump_host(host);
            }
        }
    }

    fn handle_event(&mut self, world: &mut World, host: usize, event: &Event) {
        match *event {
            Event::Accepted { port } => {
                while let Some(accepted) = world.hosts[host].node.accept(port) {
                    self.echoed.insert((host, accepted.id), Vec::new());
                    self.echo(world, host, accepted.id);
                }
            }
            Event::Connected { id, .. } => {
                if let Some((_, conversation)) = self.of_stream(host, id) {
                    conversation.stream.iter_mut().for_each(|stream| stream.connected = true);
                    conversation.go_on(world);
                }
            }
            Event::Readable { id } | Event::Writable { id } => match self.of_stream(host, id) {
                Some((_, conversation)) => conversation.go_on(world),
                None => self.echo(world, host, id),
            },
            Event::Closed { id, error } => {
                let now = world.now;
                if let Some((index, conversation)) = self.of_stream(host, id) {
                    conversation.stream = None;
                    conversation.next = now + REDIAL_AFTER;
                    conversation.busy_since = None;
                    self.ended.push((index, error));
                }
                self.echoed.remove(&(host, id));
                world.hosts[host].node.release(now, id);
            }
            _ => {}
        }
    }

    fn of_stream(&mut self, host: usize, id: ConnectionId) -> Option<(usize, &mut Conversation)> {
        let is_its = |conversation: &Conversation| {
            conversation.from == host && conversation.stream.as_ref().is_some_and(|stream| stream.id == id)
        };
        self.conversations.iter_mut().enumerate().find(|(_, conversation)| is_its(conversation))
    }

    fn echo(&mut self, world: &mut World, host: usize, id: ConnectionId) {
        let now = world.now;
        let Some(pending) = self.echoed.get_mut(&(host, id)) else { return };
        let node = &mut world.hosts[host].node;
        let mut bytes = [0; 4 << 10];
        while let Ok(taken) = node.write(now, id, pending) {
            pending.drain(..taken);
            if !pending.is_empty() {
                break;
            }
            match node.read(now, id, &mut bytes) {
                Ok(Read::Bytes(length)) => pending.extend_from_slice(&bytes[..length]),
                Ok(Read::Eof) => {
                    let _ = node.shutdown(now, id);
                    break;
                }
                Ok(Read::Empty) | Err(_) => break,
            }
        }
        world.pump_host(host);
    }

    /// Ends everything.
    pub(crate) fn stop(&mut self, world: &mut World) {
        for conversation in &mut self.conversations {
            conversation.paused = true;
            if let Some(stream) = conversation.stream.take() {
                world.hosts[conversation.from].node.abort(world.now, stream.id);
                world.hosts[conversation.from].node.release(world.now, stream.id);
            }
        }
        for (host, id) in std::mem::take(&mut self.echoed).into_keys() {
            world.hosts[host].node.abort(world.now, id);
            world.hosts[host].node.release(world.now, id);
        }
        world.pump();
    }
}
