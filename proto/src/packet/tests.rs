use std::net::IpAddr;

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A packet with a right checksum sums up to zero, header and transport.
fn assert_checksums(bytes: &[u8]) {
    let packet = Packet::parse(bytes).unwrap();
    let (header, number) = match packet.source {
        IpAddr::V4(_) => (&bytes[..20], bytes[9]),
        IpAddr::V6(_) => (&[][..], bytes[6]),
    };
    if !header.is_empty() {
        assert_eq!(build::checksum(header), 0, "IPv4 header");
    }
    let transport = match number {
        protocol::ICMP_V4 => build::checksum(packet.payload),
        _ => build::pseudo_checksum(packet.source, packet.destination, number, packet.payload),
    };
    assert_eq!(transport, 0, "transport");
}

#[test]
fn checksums_are_those_of_rfc_1071() {
    // RFC 1071 §3: these words sum up to 0xddf2.
    assert_eq!(build::checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    assert_eq!(build::checksum(&[0x12]), !0x1200, "an odd byte counts as a word's first");
    assert_eq!(build::checksum(&[]), 0xffff);
}

#[test]
fn an_echo_request_is_answered_with_its_own_data() {
    let echo = icmp::Echo { identifier: 0x1234, sequence: 0xfffe };
    for (ours, theirs) in [("100.64.0.1", "100.64.0.2"), ("fd7a::1", "fd7a::2")] {
        let request = icmp::request(ip(ours), ip(theirs), echo, b"odd").unwrap();
        assert_checksums(&request);
        let reply = icmp::reply(&Packet::parse(&request).unwrap()).unwrap();
        assert_checksums(&reply);
        let packet = Packet::parse(&reply).unwrap();
        assert_eq!((packet.source, packet.destination), (ip(theirs), ip(ours)));
        assert_eq!(icmp::as_reply(&packet), Some(echo));
        assert_eq!(&packet.payload[8..], b"odd");
        assert_eq!(icmp::reply(&packet), None, "a reply is not answered");
    }
}

#[test]
fn a_reset_has_right_checksums_and_numbers() {
    for (ours, theirs) in [("100.64.0.1", "100.64.0.2"), ("fd7a::1", "fd7a::2")] {
        let syn = tcp::Segment { sequence: u32::MAX, acknowledgement: 0, flags: tcp::SYN, window: 9, length: 0 };
        let bytes = syn.build((ip(theirs), 40_000).into(), (ip(ours), 22).into()).unwrap();
        assert_checksums(&bytes);
        let reset = tcp::reset_for(&Packet::parse(&bytes).unwrap()).unwrap();
        assert_checksums(&reset);
        let packet = Packet::parse(&reset).unwrap();
        assert_eq!(packet.transport, Transport::Tcp { source: 22, destination: 40_000, flags: tcp::RST | tcp::ACK });
        assert_eq!(tcp::Segment::parse(&packet).unwrap().acknowledgement, 0);
        assert_eq!(tcp::reset_for(&packet), None);
    }
}

#[test]
fn a_renumbered_segment_is_as_if_built_so() {
    for pair in [["100.64.0.1", "100.64.0.2"], ["fd7a:115c:a1e0::1", "fd7a:115c:a1e0::2"]] {
        let [from, to] = pair.map(|address| std::net::SocketAddr::new(ip(address), 22));
        for sequence in [0, 1, 0xffff, 0x1234_5678, u32::MAX] {
            let segment = tcp::Segment { sequence: 99, acknowledgement: 7, flags: tcp::ACK, window: 5, length: 0 };
            let mut packet = segment.build(from, to).unwrap();
            tcp::renumber(&mut packet, sequence);
            assert_eq!(packet, tcp::Segment { sequence, ..segment }.build(from, to).unwrap());
        }
    }
    let mut other = vec![0x45; 40];
    tcp::renumber(&mut other, 1);
    assert_eq!(other, vec![0x45; 40]);
}

#[test]
fn a_ping_of_tailscales_own_is_answered_byte_by_byte() {
    let ping = tsmp::ping(ip("100.64.0.1"), ip("100.64.0.2"), *b"abcdefgh").unwrap();
    assert_eq!(&ping[20..], b"pabcdefgh");
    assert_eq!(ping[9], 99);
    let pong = tsmp::pong(&Packet::parse(&ping).unwrap(), 0x1f90).unwrap();
    assert_eq!(&pong[20..], b"oabcdefgh\x1f\x90");
    let read = tsmp::parse(&Packet::parse(&pong).unwrap());
    assert_eq!(read, Some(tsmp::Message::Pong { data: *b"abcdefgh", peer_api_port: 0x1f90 }));
}

#[test]
fn messages_of_tailscales_own_that_are_cut_or_unknown() {
    let read = |body: &[u8]| {
        let bytes = build::ip(ip("1.1.1.1"), ip("2.2.2.2"), protocol::TSMP, body).unwrap();
        Packet::parse(&bytes).map(|packet| tsmp::parse(&packet))
    };
    assert_eq!(read(b"p12345"), Err(ParseError::UnknownProtocol), "shorter than any");
    assert_eq!(read(b"p123456"), Ok(None));
    assert_eq!(read(b"Z123456"), Ok(Some(tsmp::Message::Unknown(b'Z'))));
    assert_eq!(read(&[b'a'; 33]), Ok(Some(tsmp::Message::DiscoKey([b'a'; 32]))));
    assert_eq!(read(&[b'a'; 32]), Ok(None));
    let Ok(Some(tsmp::Message::Rejected(rejected))) = read(&[b'!', 6, b'S', 0, 1, 0, 2, 1]) else {
        panic!("not read");
    };
    assert!(rejected.maybe_broken);
    assert_eq!(rejected.reason, tsmp::RejectReason::ShieldsUp);
}

#[test]
fn families_do_not_mix() {
    assert_eq!(build::ip(ip("1.1.1.1"), ip("::1"), 6, &[]), None);
    assert_eq!(build::ip(ip("1.1.1.1"), ip("2.2.2.2"), 6, &[0; 65_535]), None);
}

/// One segment of a connection with `data`, and with options when `options` isn't empty.
fn segment(v6: bool, sequence: u32, flags: u8, options: &[u8], data: &[u8]) -> Vec<u8> {
    let (from, to) = if v6 { (ip("fd7a::1"), ip("fd7a::2")) } else { (ip("100.64.0.1"), ip("100.64.0.2")) };
    let mut transport = vec![0xc0, 0, 0, 22];
    transport.extend_from_slice(&sequence.to_be_bytes());
    transport.extend_from_slice(&7u32.to_be_bytes());
    transport.extend_from_slice(&[u8::try_from(5 + options.len() / 4).unwrap() << 4, flags, 1, 0, 0, 0, 0, 0]);
    transport.extend_from_slice(options);
    transport.extend_from_slice(data);
    let check = build::pseudo_checksum(from, to, protocol::TCP, &transport);
    transport[16..18].copy_from_slice(&check.to_be_bytes());
    build::ip(from, to, protocol::TCP, &transport).unwrap()
}

fn data_of(bytes: &[u8]) -> (tcp::Segment, Vec<u8>) {
    let packet = Packet::parse(bytes).unwrap();
    let segment = tcp::Segment::parse(&packet).unwrap();
    (segment, packet.payload[packet.payload.len() - segment.length as usize..].to_vec())
}

#[test]
fn a_super_segment_is_cut_into_whole_packets_and_joined_again() {
    let data: Vec<u8> = (0..10_007u32).map(|n| (n % 251) as u8).collect();
    for (v6, options) in [(false, &[][..]), (true, &[]), (false, &[1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8])] {
        let whole = segment(v6, u32::MAX - 3000, tcp::ACK | tcp::PSH, options, &data);
        let mut batch = PacketBatch::new();
        batch.push_slice(1, b"before");
        batch.push_super(1, whole.len(), 1200, |room| room.copy_from_slice(&whole));
        assert_eq!(batch.len(), 9);
        assert_eq!(batch.first().unwrap().1, b"before");
        batch.take_first();
        let (mut cut, mut together) = (PacketBatch::new(), Vec::new());
        while let Some((peer, packet)) = batch.first() {
            assert_checksums(packet);
            let (segment, data) = data_of(packet);
            assert_eq!(segment.sequence, (u32::MAX - 3000).wrapping_add(together.len() as u32));
            let is_last = together.len() + data.len() == 10_007;
            assert!(data.len() == 1200 || is_last);
            assert_eq!(segment.flags, if is_last { tcp::ACK | tcp::PSH } else { tcp::ACK });
            together.extend_from_slice(&data);
            cut.push_slice(peer, packet);
            batch.take_first();
        }
        assert_eq!((together, cut.len(), batch.is_empty()), (data.clone(), 9, true));
        cut.join_segments();
        let joined: Vec<_> = cut.iter().map(|(_, packet)| data_of(packet)).collect();
        assert_eq!(joined, [data_of(&whole)]);
    }
}

#[test]
fn only_what_follows_in_the_same_connection_is_joined() {
    let first = segment(false, 100, tcp::ACK, &[], b"abc");
    let mut elsewhere = segment(false, 103, tcp::ACK, &[], b"def");
    elsewhere[20] ^= 1;
    let mut fragment = segment(false, 103, tcp::ACK, &[], b"def");
    fragment[6] |= 0x20;
    let alone = [
        segment(false, 104, tcp::ACK, &[], b"def"),
        segment(false, 103, tcp::ACK | tcp::FIN, &[], b"def"),
        segment(false, 103, tcp::ACK, &[1, 1, 1, 1], b"def"),
        segment(true, 103, tcp::ACK, &[], b"def"),
        segment(false, 103, tcp::ACK, &[], b""),
        elsewhere,
        fragment,
        b"\x45".to_vec(),
    ];
    for other in &alone {
        let mut batch = PacketBatch::new();
        batch.push_slice(1, &first);
        batch.push_slice(1, other);
        batch.join_segments();
        assert_eq!(batch.iter().collect::<Vec<_>>(), [(1, first.as_slice()), (1, other)]);
    }
    let mut batch = PacketBatch::new();
    batch.push_slice(1, &first);
    batch.push_slice(2, &segment(false, 103, tcp::ACK, &[], b"def"));
    batch.join_segments();
    assert_eq!(batch.iter().count(), 2, "another peer's");
}

#[test]
fn a_joined_segment_is_no_longer_than_its_length_field_can_say() {
    let mut batch = PacketBatch::new();
    for n in 0..60 {
        batch.push_slice((), &segment(false, n * 1240, tcp::ACK, &[], &[0; 1240]));
    }
    batch.join_segments();
    let lengths: Vec<_> = batch.iter().map(|(_, packet)| data_of(packet).1.len()).collect();
    assert_eq!(lengths, [52 * 1240, 8 * 1240]);
}

#[test]
fn options_of_any_kind_are_read_or_passed_over() {
    let read =
        |options: &[u8]| tcp::Options::parse(&Packet::parse(&segment(false, 1, tcp::ACK, options, b"x")).unwrap());
    assert_eq!(read(&[]), tcp::Options::default());
    let syn = read(&[2, 4, 4, 216, 4, 2, 1, 3, 3, 7, 0, 99]);
    assert_eq!((syn.window_scale, syn.sack_permitted), (Some(7), true));
    let blocks = [1, 1, 5, 18, 0, 0, 0, 9, 0, 0, 0, 12, 255, 255, 255, 250, 0, 0, 0, 2];
    let sack = read(&blocks);
    assert_eq!(sack.selected, [Some((9, 12)), Some((u32::MAX - 5, 2)), None, None], "around the corner");
    for cut in [[5, 40, 0, 0], [5, 0, 0, 0], [5, 1, 1, 1], [3, 3, 0, 5]] {
        let _ = read(&cut);
    }
}

/// The parts of a super-segment that are asked for come out as if they had been sent alone.
#[test]
fn parts_of_a_super_segment_are_segments_of_their_own() {
    let data: Vec<u8> = (0..=u8::MAX).cycle().take(10_000).collect();
    let whole = segment(false, 5000, tcp::ACK | tcp::PSH | tcp::FIN, &[], &data);
    let parts = |parts: &[std::ops::Range<usize>]| {
        let mut batch = PacketBatch::new();
        batch.push_slice((), b"before");
        batch.push_super((), whole.len(), 1000, |room| room.copy_from_slice(&whole));
        batch.keep_of_last(parts);
        let len = batch.len();
        assert_eq!(batch.first().map(|(_, packet)| packet.to_vec()), Some(b"before".to_vec()));
        batch.take_first();
        let mut found = Vec::new();
        while let Some((_, packet)) = batch.first() {
            let packet = Packet::parse(packet).unwrap();
            let segment = tcp::Segment::parse(&packet).unwrap();
            let begins = (segment.sequence - 5000) as usize;
            assert!(packet.payload.ends_with(&data[begins..begins + segment.length as usize]));
            found.push((begins, segment.length, segment.flags & tcp::FIN != 0));
            batch.take_first();
        }
        (len, found)
    };
    assert_eq!(parts(&[]), (1, vec![]));
    assert_eq!(parts(&[0..1000, 3000..4500]).1, [(0, 1000, false), (3000, 1000, false), (4000, 500, false)]);
    assert_eq!(parts(&[9000..9500, 9500..10_001]).1, [(9000, 1000, true)]);
    assert_eq!(parts(&[2000..3000, 10_000..10_001]).1, [(2000, 1000, false), (10_000, 0, true)]);
    assert_eq!(parts(&[100..200, 210..300, 9500..10_000]).1, [(100, 200, false), (9500, 500, false)]);
}
