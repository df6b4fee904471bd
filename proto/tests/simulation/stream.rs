//! What tests do in a world: connect, transfer known bytes, ping.

use std::time::Duration;

use nixtail_proto::node::{Event, Path, PingId, PingKind};
use nixtail_proto::stack::{ConnectionError, ConnectionId, Read};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::world::{SECOND, World};

impl World {
    /// Dials from one host to a port of another, where it waits to be accepted. Panics if that takes longer than `limit`.
    pub(crate) fn connect(&mut self, from: usize, to: usize, port: u16, limit: Duration) -> Stream {
        let remote = self.hosts[to].tailnet(port);
        let near = self.hosts[from].node.connect(self.now, remote).unwrap();
        let mut far = None;
        self.pass_until(limit, "connected", |world| {
            far = far.or_else(|| world.hosts[to].node.accept(port));
            far.is_some() && world.has(from, |event| matches!(event, Event::Connected { id, .. } if *id == near))
        });
        let far = far.unwrap();
        assert_eq!(far.peer, self.hosts[from].key(), "a stream carries the key of the session that it came through");
        Stream { from, to, near, far: far.id, sent: 0, received: 0 }
    }

    pub(crate) fn has(&self, host: usize, wanted: impl Fn(&Event) -> bool) -> bool {
        self.hosts[host].events.iter().any(wanted)
    }

    /// How a connection ended, if it did.
    pub(crate) fn closed(&self, host: usize, connection: ConnectionId) -> Option<Option<ConnectionError>> {
        self.hosts[host].events.iter().find_map(|event| match event {
            Event::Closed { id, error } if *id == connection => Some(*error),
            _ => None,
        })
    }

    pub(crate) fn path(&self, host: usize, peer: usize) -> Path {
        let key = self.hosts[peer].key();
        let status = self.hosts[host].node.peer_status(self.now).find(|status| status.key == key);
        status.map_or(Path::None, |status| status.path)
    }

    /// Pings and waits for the answer.
    pub(crate) fn ping(&mut self, from: usize, to: usize, kind: PingKind) -> Option<(Duration, Path)> {
        let key = self.hosts[to].key();
        let ping: PingId = self.hosts[from].node.ping(self.now, key, kind).unwrap();
        let mut answer = None;
        self.pass_until(10 * SECOND, "an answer or a failure", |world| {
            world.hosts[from].events.iter().any(|event| match event {
                Event::PingReply { id, latency, path, .. } if *id == ping => {
                    answer = Some((*latency, *path));
                    true
                }
                Event::PingFailed { id, .. } => *id == ping,
                _ => false,
            })
        });
        answer
    }

    /// Sends so many bytes along the stream and checks each. Panics if it takes longer than `limit`.
    pub(crate) fn transfer(&mut self, stream: &mut Stream, bytes: u64, limit: Duration) {
        let goal = stream.received + bytes;
        self.pass_until(limit, "all bytes arrived", |world| {
            stream.write(world, goal);
            stream.read(world);
            stream.received == goal
        });
    }
}

/// A stream between two hosts that carries a known pattern from `from` to `to`.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) near: ConnectionId,
    pub(crate) far: ConnectionId,
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

impl Stream {
    pub(crate) fn write(&mut self, world: &mut World, goal: u64) {
        let pattern = pattern();
        while self.sent < goal {
            let offset = usize::try_from(self.sent % PERIOD as u64).unwrap();
            let length = usize::try_from(goal - self.sent).unwrap().min(PERIOD);
            let node = &mut world.hosts[self.from].node;
            let taken = node.write(world.now, self.near, &pattern[offset..offset + length]).expect("writing");
            self.sent += taken as u64;
            if taken < length {
                return;
            }
        }
    }

    pub(crate) fn read(&mut self, world: &mut World) {
        let (pattern, mut bytes) = (pattern(), vec![0; PERIOD]);
        loop {
            let node = &mut world.hosts[self.to].node;
            match node.read(world.now, self.far, &mut bytes).expect("reading") {
                Read::Bytes(length) => {
                    let offset = usize::try_from(self.received % PERIOD as u64).unwrap();
                    assert!(bytes[..length] == pattern[offset..offset + length], "wrong bytes at {}", self.received);
                    self.received += length as u64;
                }
                Read::Empty => return,
                Read::Eof => panic!("the stream ended after {} bytes", self.received),
            }
        }
    }
}

/// Not a divisor of any packet or buffer size.
pub(crate) const PERIOD: usize = 65_521;

/// Twice the pattern, so that any offset has a whole period behind it.
pub(crate) fn pattern() -> &'static [u8] {
    static PATTERN: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    PATTERN.get_or_init(|| {
        let mut period = vec![0; PERIOD];
        StdRng::seed_from_u64(1).fill_bytes(&mut period);
        period.repeat(2)
    })
}
