//! Two WireGuard sessions: one seals trains of full packets, the other opens them.

use std::net::IpAddr;
use std::time::Instant;

use nixtail_proto::key::NodePrivate;
use nixtail_proto::packet::{build, protocol};
use nixtail_proto::tunnel::handshake::Identity;
use nixtail_proto::tunnel::session::{OVERHEAD, Sealed, Session};

use super::budget::{Budget, Meter};
use super::{Ends, LoopbackError, PACKET, PAYLOAD, TRAIN};

/// Room for a sealed packet, or a handshake.
const ROOM: usize = PACKET + OVERHEAD;

pub(super) fn measure(budget: &Budget) -> Result<Ends, LoopbackError> {
    let failed = |why: &str| LoopbackError::Stage("WireGuard", why.to_owned());
    let addresses = ["100.64.0.1", "100.64.0.2"].map(|address| address.parse::<IpAddr>());
    let [Ok(from), Ok(to)] = addresses else { return Err(failed("no addresses")) };
    let segment = vec![0x5a; PACKET - 20];
    let packet = build::ip(from, to, protocol::TCP, &segment).ok_or_else(|| failed("no packet"))?;
    let [mut seals, mut opens] = sessions(&packet).ok_or_else(|| failed("no handshake came about"))?;
    let mut sealed = vec![0; TRAIN * ROOM];
    let mut opened = vec![0; ROOM];
    let (mut ends, mut rounds) = (Ends::default(), budget.rounds());
    let mut meter = Meter::start();
    while rounds() {
        let now = Instant::now();
        for room in sealed.chunks_exact_mut(ROOM) {
            if !matches!(seals.seal(now, &packet, room), Sealed::Bytes(ROOM)) {
                return Err(failed("a packet wasn't sealed"));
            }
        }
        meter.lap(&mut ends.sending);
        for datagram in sealed.chunks_exact(ROOM) {
            if !matches!(opens.open(now, datagram, &mut opened), Ok(Some(PACKET))) {
                return Err(failed("a packet wasn't opened"));
            }
        }
        meter.lap(&mut ends.receiving);
        ends.bytes += (TRAIN * PAYLOAD) as u64;
    }
    Ok(ends)
}

/// Two sessions with keys in common. `packet` is what the first sends first.
fn sessions(packet: &[u8]) -> Option<[Session; 2]> {
    let mut rng = rand::rng();
    let keys = [(); 2].map(|()| NodePrivate::generate(&mut rng));
    let identities = keys.each_ref().map(Identity::new);
    let mut left = Session::new(&identities[0], &keys[1].public(), 1);
    let mut right = Session::new(&identities[1], &keys[0].public(), 2);
    let (now, mut message, mut answer) = (Instant::now(), [0; ROOM], [0; ROOM]);
    left.wait(now, packet);
    left.handle_timeout(now, &identities[0]);
    let length = left.poll_transmit(now, &mut message)?;
    let length = right.handle_handshake(now, None, message.get(..length)?, &mut answer).ok()?;
    left.handle_handshake(now, None, answer.get(..length)?, &mut message).ok()?;
    let Sealed::Bytes(length) = left.seal_waiting(now, &mut message) else { return None };
    // The first packet proves to the other side that the keys are in use.
    right.open(now, message.get(..length)?, &mut answer).ok()?;
    Some([left, right])
}
