//! Sealing and opening: WireGuard's data messages.

use std::time::Instant;

use divan::counter::BytesCount;
use divan::{Bencher, black_box, black_box_drop};
use nixtail_proto::key::NodePrivate;
use nixtail_proto::tunnel::handshake::Identity;
use nixtail_proto::tunnel::session::{HANDSHAKE_ROOM, Sealed, Session};

use crate::{PACKET, SEALED};

/// Two sessions with keys. The first may seal, the second open; both by this time.
fn pair() -> (Session, Session, Instant) {
    let now = Instant::now();
    let keys = [1, 2].map(|byte| NodePrivate::from_bytes([byte; 32]));
    let identities = [0, 1].map(|one: usize| Identity::new(&keys[one]));
    let [mut left, mut right] = [0, 1].map(|one: usize| Session::new(&identities[one], &keys[1 - one].public(), 7));
    left.wait(now, &[]);
    left.handle_timeout(now, &identities[0]);
    let [mut initiation, mut answer] = [[0; HANDSHAKE_ROOM]; 2];
    let length = left.poll_transmit(now, &mut initiation).unwrap();
    let length = right.handle_handshake(now, None, &initiation[..length], &mut answer).unwrap();
    left.handle_handshake(now, None, &answer[..length], &mut initiation).unwrap();
    assert!(left.has_keys(now));
    (left, right, now)
}

/// An IPv4 packet as far as a session looks at it: version and length.
fn content() -> [u8; PACKET] {
    let mut packet = [0x5a; PACKET];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&u16::try_from(PACKET).unwrap().to_be_bytes());
    packet
}

#[divan::bench(sample_count = 1000)]
fn seal(bencher: Bencher<'_, '_>) {
    let (mut left, _, now) = pair();
    let (packet, mut out) = (content(), [0; SEALED]);
    bencher.counter(BytesCount::new(PACKET)).bench_local(|| {
        assert_eq!(left.seal(now, black_box(&packet), &mut out), Sealed::Bytes(SEALED));
    });
}

#[divan::bench(sample_count = 1000)]
fn open(bencher: Bencher<'_, '_>) {
    let (mut left, mut right, now) = pair();
    let (packet, mut out) = (content(), [0; SEALED]);
    let sealed = || {
        let mut sealed = [0; SEALED];
        left.seal(now, &packet, &mut sealed);
        sealed
    };
    bencher.counter(BytesCount::new(PACKET)).with_inputs(sealed).bench_local_refs(|sealed| {
        assert_eq!(right.open(now, black_box(&*sealed), &mut out), Ok(Some(PACKET)));
        black_box_drop(&out);
    });
}
