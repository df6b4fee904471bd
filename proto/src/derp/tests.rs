use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::*;
use crate::key::NodePrivate;

fn key(n: u8) -> NodePublic {
    NodePublic::from_bytes([n; 32])
}

fn written(frame: Frame<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    frame.write(&mut out).unwrap();
    out
}

#[test]
fn frames_are_laid_out_as_in_derp_go() {
    let one = [1; 32];
    for (frame, kind, payload) in [
        (Frame::ServerKey(key(1)), 1, [b"DERP\xf0\x9f\x94\x91".as_slice(), &one].concat()),
        (Frame::ClientInfo { key: key(1), sealed: b"box" }, 2, [&one[..], b"box"].concat()),
        (Frame::ServerInfo { sealed: b"box" }, 3, b"box".to_vec()),
        (Frame::SendPacket { to: key(1), packet: b"hello" }, 4, [&one[..], b"hello"].concat()),
        (Frame::RecvPacket { from: key(1), packet: b"hello" }, 5, [&one[..], b"hello"].concat()),
        (Frame::KeepAlive, 6, Vec::new()),
        (Frame::NotePreferred(true), 7, vec![1]),
        (Frame::NotePreferred(false), 7, vec![0]),
        (Frame::PeerGone { peer: key(1), reason: PeerGoneReason::NotHere }, 8, [&one[..], &[1]].concat()),
        (Frame::PeerPresent { peer: key(1) }, 9, one.to_vec()),
        (Frame::ForwardPacket { from: key(1), to: key(2), packet: b"x" }, 0x0a, [&one[..], &[2; 32], b"x"].concat()),
        (Frame::WatchConnections, 0x10, Vec::new()),
        (Frame::ClosePeer { peer: key(1) }, 0x11, one.to_vec()),
        (Frame::Ping(*b"12345678"), 0x12, b"12345678".to_vec()),
        (Frame::Pong(*b"12345678"), 0x13, b"12345678".to_vec()),
        (Frame::Health(b"sick"), 0x14, b"sick".to_vec()),
        (
            Frame::Restarting { reconnect_in: Duration::from_millis(1), try_for: Duration::from_millis(258) },
            0x15,
            vec![0, 0, 0, 1, 0, 0, 1, 2],
        ),
        (Frame::Unknown { kind: 0x77 }, 0x77, Vec::new()),
    ] {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let bytes = [&[kind][..], &length, &payload].concat();
        assert_eq!(written(frame), bytes, "{frame:?}");
        assert_eq!(parse(&bytes), Ok(Some((frame, bytes.len()))));
    }
}

#[test]
fn later_versions_may_say_more() {
    let with =
        |kind: u8, payload: &[u8]| [&[kind, 0, 0, 0, u8::try_from(payload.len()).unwrap()][..], payload].concat();
    let greeting = with(1, &[&MAGIC[..], &[1; 32], b"more"].concat());
    assert_eq!(parse(&greeting), Ok(Some((Frame::ServerKey(key(1)), greeting.len()))));
    let present = with(9, &[1; 51]);
    assert_eq!(parse(&present), Ok(Some((Frame::PeerPresent { peer: key(1) }, present.len()))));
    let unknown = with(0xfe, b"whatever");
    assert_eq!(parse(&unknown), Ok(Some((Frame::Unknown { kind: 0xfe }, unknown.len()))));
    let gone_without_reason = with(8, &[1; 32]);
    assert!(matches!(
        parse(&gone_without_reason),
        Ok(Some((Frame::PeerGone { reason: PeerGoneReason::Disconnected, .. }, _)))
    ));
}

#[test]
fn what_is_too_long_or_too_short_is_an_error() {
    // By the header alone, before anything is buffered.
    assert_eq!(parse(&[5, 0, 0x10, 0, 1]), Err(DerpError::FrameTooLarge { kind: 5, length: (1 << 20) + 1 }));
    assert_eq!(parse(&[0x77, 0xff, 0xff, 0xff, 0xff]), Err(DerpError::FrameTooLarge { kind: 0x77, length: u32::MAX }));
    assert_eq!(parse(&[5, 0, 0x10, 0, 0]), Ok(None));
    for kind in [2, 4, 5, 7, 8, 9, 0x0a, 0x11, 0x12, 0x13, 0x15] {
        assert_eq!(parse(&[kind, 0, 0, 0, 0]), Err(DerpError::Short { kind }));
    }
    assert_eq!(parse(&[1, 0, 0, 0, 0]), Err(DerpError::Greeting));
    let large = vec![0; MAX_PACKET_LEN + 1];
    let error = Err(DerpError::PacketTooLarge { length: large.len() });
    let mut out = b"as it was".to_vec();
    assert_eq!(write_send_packet(&key(1), &large, &mut out), error);
    assert_eq!(write_recv_packet(&key(1), &large, &mut out), error);
    assert_eq!(out, b"as it was");
    let mut bytes = vec![5, 0, 1, 0, 33];
    bytes.resize(5 + 32 + large.len(), 0);
    assert_eq!(parse(&bytes), Err(DerpError::PacketTooLarge { length: large.len() }));
    bytes[4] = 32;
    assert!(matches!(parse(&bytes), Ok(Some((Frame::RecvPacket { packet, .. }, _))) if packet.len() == MAX_PACKET_LEN));
}

#[test]
fn a_certificate_may_tell_the_relays_key() {
    let text = format!("derpkey{}", "07".repeat(32));
    let certificate = |tag: u8, text: &str| [b"\x30\x03abc", &[tag, 71][..], text.as_bytes(), b"more"].concat();
    assert_eq!(key_in_certificate(&certificate(0x0c, &text)), Some(key(7)));
    assert_eq!(key_in_certificate(&certificate(0x13, &text)), Some(key(7)));
    for other in [
        certificate(0x04, &text),
        certificate(0x0c, &text.replace('d', "D")),
        certificate(0x0c, &text.replace('0', "x")),
        certificate(0x0c, &text[..70]),
        Vec::new(),
    ] {
        assert_eq!(key_in_certificate(&other), None);
    }
}

#[test]
fn health_can_be_shown() {
    assert_eq!(health_text(b"dup\x1b[31mlicate\n\xff"), "dup[31mlicate\u{fffd}");
    assert_eq!(health_text(&[b'x'; 10_000]).len(), MAX_HEALTH_LEN);
}

#[test]
fn information_opens_for_the_two_ends_only() {
    let mut rng = StdRng::seed_from_u64(1);
    let (node, relay, other) =
        (NodePrivate::generate(&mut rng), NodePrivate::generate(&mut rng), NodePrivate::generate(&mut rng));

    let mut out = Vec::new();
    ClientInfo::default().write(&node, &relay.public(), &mut rng, &mut out).unwrap();
    let Ok(Some((Frame::ClientInfo { key, sealed }, _))) = parse(&out) else { panic!() };
    assert_eq!(key, node.public());
    assert_eq!(ClientInfo::open(sealed, &relay, &key), Ok(ClientInfo::default()));
    assert_eq!(ClientInfo::open(sealed, &relay, &other.public()), Err(DerpError::Sealed));
    assert_eq!(ClientInfo::open(&sealed[..39], &relay, &key), Err(DerpError::Sealed));

    let info = ServerInfo { token_bucket_bytes_burst: 5, ..ServerInfo::default() };
    let mut out = Vec::new();
    info.write(&relay, &node.public(), &mut rng, &mut out).unwrap();
    let Ok(Some((Frame::ServerInfo { sealed }, _))) = parse(&out) else { panic!() };
    assert_eq!(ServerInfo::open(sealed, &node, &relay.public()), Ok(info));
    assert_eq!(ServerInfo::open(sealed, &other, &relay.public()), Err(DerpError::Sealed));
}

#[test]
fn information_is_the_json_of_go() {
    assert_eq!(serde_json::to_string(&ClientInfo::default()).unwrap(), r#"{"version":2,"CanAckPings":true}"#);
    assert_eq!(serde_json::to_string(&ServerInfo::default()).unwrap(), r#"{"version":2}"#);
    let info: ClientInfo =
        serde_json::from_str(r#"{"meshKey":"","version":2,"CanAckPings":false,"IsProber":true,"AppName":"x"}"#)
            .unwrap();
    assert_eq!(info, ClientInfo { version: 2, can_ack_pings: false, is_prober: true });
}

/// A stream of one frame of each of many sizes, with the bytes coming in pieces.
fn frames_in_pieces(packets: &[Vec<u8>], pieces: &[usize]) -> Vec<Vec<u8>> {
    let mut stream = Vec::new();
    for packet in packets {
        write_recv_packet(&key(9), packet, &mut stream).unwrap();
    }
    let (mut decoder, mut found) = (Decoder::new(), Vec::new());
    let mut pieces = pieces.iter().cycle();
    let mut rest = &stream[..];
    while !rest.is_empty() {
        let (piece, behind) = rest.split_at((*pieces.next().unwrap()).min(rest.len()));
        rest = behind;
        decoder.unread().extend_from_slice(piece);
        while let Some(frame) = decoder.next_frame().unwrap() {
            let Frame::RecvPacket { packet, .. } = frame else { panic!("{frame:?}") };
            found.push(packet.to_vec());
        }
    }
    assert!(decoder.unread().is_empty());
    found
}

proptest! {
    #[test]
    fn a_decoder_does_not_care_how_bytes_arrive(
        packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..3000), 1..8),
        pieces in proptest::collection::vec(1usize..2000, 1..8),
    ) {
        prop_assert_eq!(frames_in_pieces(&packets, &pieces), packets);
    }

    #[test]
    fn any_bytes_are_frames_or_an_error(kind in 0u8..0x20, payload: Vec<u8>, rest: Vec<u8>) {
        assert_eq!(key_in_certificate(&payload), None);
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let bytes = [&[kind][..], &length, &payload, &rest].concat();
        let mut decoder = Decoder::new();
        decoder.unread().extend_from_slice(&bytes);
        while let Ok(Some(_)) = decoder.next_frame() {}
    }
}
