//! One node with its socket and its applications, as the dataplane has them.

use std::collections::{HashMap, VecDeque};
use std::error::Error;
use std::hint::black_box;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use nixtail_proto::node::{Destination, Event, Node};
use nixtail_proto::stack::{ConnectionId, Read};

/// What is written and read at once (`CHUNK` of src/net/pipe.rs).
const CHUNK: usize = 64 << 10;
/// The send buffer (`TRANSMIT_BUFFER` of src/net/socket.rs).
const TRANSMIT_BUFFER: usize = 65_000;
/// How much goes at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Segments of one train that is sent.
    segments: usize,
    /// Trains that are received before anything else is done.
    trains: usize,
}
/// As src/net has it: `MAX_SEGMENTS` of socket.rs, and what `Driver::receive` takes.
pub(super) const USUAL: Limits = Limits { segments: 64, trains: 32 };
/// As short as a train can be and still be acknowledged at once (RFC 9293 §3.8.6.3).
pub(super) const SHORTEST: Limits = Limits { segments: 2, trains: 1 };
/// What else a turn holds (src/net/dataplane/driver.rs).
const EVENTS_PER_TURN: usize = 64;
const SENDS_PER_TURN: usize = 16;

/// Calls `call`. Callgrind is told to count what happens below this function and nothing else.
#[inline(never)]
pub fn counted<R>(call: impl FnOnce() -> R) -> R {
    black_box(call())
}

/// Datagrams that came in one train.
struct Train {
    at: Instant,
    from: SocketAddr,
    segment_size: usize,
    data: Vec<u8>,
}

/// What an application has to do with a stream.
#[derive(Debug, Default, Clone, Copy)]
struct Application {
    to_write: usize,
    to_read: usize,
    /// The node took all that it was given.
    is_writable: bool,
}

pub(super) struct Host {
    pub(super) node: Node,
    pub(super) address: SocketAddr,
    pub(super) tailnet_address: IpAddr,
    pub(super) is_counted: bool,
    pub(super) limits: Limits,
    /// Datagrams, and the trains that they went in.
    pub(super) sent: [u64; 2],
    /// There is something to do at once.
    pub(super) has_more: bool,
    inbox: VecDeque<Train>,
    applications: HashMap<ConnectionId, Application>,
    /// Those that were given something to write.
    offered: Vec<ConnectionId>,
    /// Bytes that all applications have still to write and to read.
    owed: usize,
    chunk: Vec<u8>,
    buffer: Vec<u8>,
}

impl Host {
    pub(super) fn new(node: Node, address: SocketAddr, tailnet_address: IpAddr) -> Self {
        Self {
            node,
            address,
            tailnet_address,
            is_counted: false,
            limits: USUAL,
            sent: [0; 2],
            has_more: true,
            inbox: VecDeque::new(),
            applications: HashMap::new(),
            offered: Vec::new(),
            owed: 0,
            chunk: vec![0x5a; CHUNK],
            buffer: vec![0; TRANSMIT_BUFFER],
        }
    }

    /// The application wants to write so much more.
    pub(super) fn offer(&mut self, id: ConnectionId, bytes: usize) {
        let application = self.applications.entry(id).or_default();
        application.to_write += bytes;
        application.is_writable = true;
        self.owed += bytes;
        self.offered.push(id);
        self.has_more = true;
    }

    /// The application waits for so much more.
    pub(super) fn expect(&mut self, id: ConnectionId, bytes: usize) {
        self.applications.entry(id).or_default().to_read += bytes;
        self.owed += bytes;
    }

    /// Whether an application isn't done.
    pub(super) fn is_busy(&self) -> bool {
        self.owed > 0
    }

    pub(super) fn arrive(&mut self, at: Instant, from: SocketAddr, segment_size: usize, data: &[u8]) {
        self.inbox.push_back(Train { at, from, segment_size, data: data.to_vec() });
    }

    pub(super) fn has_arrived(&self, now: Instant) -> bool {
        self.inbox.front().is_some_and(|train| train.at <= now)
    }

    /// When this host has something to do, if nothing else happens.
    pub(super) fn wants_turn_at(&mut self, now: Instant) -> Option<Instant> {
        let more = self.has_more.then_some(now);
        let arrival = self.inbox.front().map(|train| train.at);
        [more, arrival, self.node.poll_timeout()].into_iter().flatten().min()
    }

    /// What came in, then timers, events and sends. `send` gets our address, the destination, the segments' size and the
    /// datagrams.
    pub(super) fn turn(
        &mut self,
        now: Instant,
        mut send: impl FnMut(SocketAddr, SocketAddr, usize, &[u8]),
    ) -> Result<(), Box<dyn Error>> {
        if self.wants_turn_at(now).is_none_or(|at| at > now) {
            return Ok(());
        }
        for _ in 0..self.limits.trains {
            if !self.has_arrived(now) {
                break;
            }
            let Some(mut train) = self.inbox.pop_front() else { break };
            self.ask(|node| node.handle_datagrams(now, train.from, &mut train.data, train.segment_size));
        }
        self.has_more = self.has_arrived(now);
        if self.ask(Node::poll_timeout).is_some_and(|at| at <= now) {
            self.ask(|node| node.handle_timeout(now));
        }
        for id in std::mem::take(&mut self.offered) {
            self.write(now, id)?;
        }
        let (mut events, mut sends) = (0, 0);
        loop {
            let before = (events, sends);
            while events < EVENTS_PER_TURN
                && let Some(event) = self.ask(Node::poll_event)
            {
                events += 1;
                self.handle_event(now, &event)?;
            }
            while sends < SENDS_PER_TURN && self.send_next(now, &mut send) {
                sends += 1;
            }
            if events == EVENTS_PER_TURN || sends == SENDS_PER_TURN {
                self.has_more = true;
                return Ok(());
            }
            if (events, sends) == before {
                return Ok(());
            }
        }
    }

    fn ask<R>(&mut self, call: impl FnOnce(&mut Node) -> R) -> R {
        if self.is_counted { counted(|| call(&mut self.node)) } else { call(&mut self.node) }
    }

    fn handle_event(&mut self, now: Instant, event: &Event) -> Result<(), Box<dyn Error>> {
        match event {
            Event::Readable { id } => self.read(now, *id),
            Event::Writable { id } => {
                if let Some(application) = self.applications.get_mut(id) {
                    application.is_writable = true;
                }
                self.write(now, *id)
            }
            Event::Closed { error, .. } => Err(format!("a stream was closed: {error:?}").into()),
            _ => Ok(()),
        }
    }

    fn read(&mut self, now: Instant, id: ConnectionId) -> Result<(), Box<dyn Error>> {
        let mut chunk = std::mem::take(&mut self.chunk);
        let mut taken = 0;
        while let Read::Bytes(length) = self.ask(|node| node.read(now, id, &mut chunk))? {
            taken += length;
        }
        self.chunk = chunk;
        if let Some(application) = self.applications.get_mut(&id) {
            let taken = taken.min(application.to_read);
            application.to_read -= taken;
            self.owed -= taken;
        }
        Ok(())
    }

    fn write(&mut self, now: Instant, id: ConnectionId) -> Result<(), Box<dyn Error>> {
        while let Some(application) = self.applications.get(&id).copied()
            && application.is_writable
            && application.to_write > 0
        {
            let chunk = std::mem::take(&mut self.chunk);
            let length = application.to_write.min(chunk.len());
            let taken = self.ask(|node| node.write(now, id, &chunk[..length]));
            self.chunk = chunk;
            let (taken, to_write) = (taken?, application.to_write);
            let application = Application { to_write: to_write - taken, is_writable: taken == length, ..application };
            self.applications.insert(id, application);
            self.owed -= taken;
        }
        Ok(())
    }

    fn send_next(&mut self, now: Instant, send: &mut impl FnMut(SocketAddr, SocketAddr, usize, &[u8])) -> bool {
        let mut buffer = std::mem::take(&mut self.buffer);
        let segments = self.limits.segments;
        let transmit = self.ask(|node| node.poll_transmit(now, &mut buffer, segments));
        if let Some(transmit) = transmit
            && let Destination::Udp(to) = transmit.destination
        {
            self.sent[0] += transmit.len.div_ceil(transmit.segment_size.max(1)) as u64;
            self.sent[1] += 1;
            send(self.address, to, transmit.segment_size, &buffer[..transmit.len]);
        }
        self.buffer = buffer;
        transmit.is_some()
    }
}
