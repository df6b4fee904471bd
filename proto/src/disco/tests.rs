use std::time::Duration;

use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::*;

const TXID: TransactionId = TransactionId([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);

fn node_key() -> NodePublic {
    let mut bytes = [0; 32];
    (bytes[1], bytes[2], bytes[30], bytes[31]) = (1, 2, 30, 31);
    NodePublic::from_bytes(bytes)
}

fn hex(text: &str) -> Vec<u8> {
    text.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

fn encode(message: &Message) -> Vec<u8> {
    let mut out = vec![0xaa; message.encoded_len()];
    message.encode(&mut out);
    out
}

/// The table of `disco/disco_test.go` TestMarshalAndParse.
#[test]
fn bodies_are_those_of_go() {
    let endpoints = vec!["1.2.3.4:567".parse().unwrap(), "[2001::3456]:789".parse().unwrap()];
    let key = "00 01 02 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 1e 1f";
    let txid = "01 02 03 04 05 06 07 08 09 0a 0b 0c";
    for (message, bytes) in [
        (Message::Ping { txid: TXID, node_key: None, padding: 0 }, format!("01 00 {txid}")),
        (Message::Ping { txid: TXID, node_key: Some(node_key()), padding: 0 }, format!("01 00 {txid} {key}")),
        (Message::Ping { txid: TXID, node_key: None, padding: 3 }, format!("01 00 {txid} 00 00 00")),
        (Message::Ping { txid: TXID, node_key: Some(node_key()), padding: 3 }, format!("01 00 {txid} {key} 00 00 00")),
        (
            Message::Pong { txid: TXID, observed: "2.3.4.5:1234".parse().unwrap() },
            format!("02 00 {txid} 00 00 00 00 00 00 00 00 00 00 ff ff 02 03 04 05 04 d2"),
        ),
        (
            Message::Pong { txid: TXID, observed: "[fed0::12]:6666".parse().unwrap() },
            format!("02 00 {txid} fe d0 00 00 00 00 00 00 00 00 00 00 00 00 00 12 1a 0a"),
        ),
        (Message::CallMeMaybe { endpoints: Vec::new() }, "03 00".to_owned()),
        (
            Message::CallMeMaybe { endpoints },
            "03 00 00 00 00 00 00 00 00 00 00 00 ff ff 01 02 03 04 02 37 \
             20 01 00 00 00 00 00 00 00 00 00 00 00 00 34 56 03 15"
                .to_owned(),
        ),
    ] {
        assert_eq!(encode(&message), hex(&bytes), "{message:?}");
        assert_eq!(Message::decode(&hex(&bytes)), Ok(message));
    }
}

/// The same table's messages of the peer-relay protocol.
#[test]
fn peer_relay_messages_are_those_of_go() {
    let key = |third: &str| format!("00 01 02 {third} {} 1e 1f", ["00"; 25].join(" "));
    let (remote, first, second) = (key("00 00"), key("03 00"), key("00 04"));
    let disco = |bytes: &str| DiscoPublic::from_bytes(hex(bytes).try_into().unwrap());
    let clients = [disco(&first), disco(&second)];
    let handshake = Handshake {
        vni: 1,
        generation: 2,
        remote: disco(&remote),
        challenge: std::array::from_fn(|at| u8::try_from(at).unwrap()),
    };
    let counted: Vec<_> = (0..32).map(|at| format!("{at:02x}")).collect();
    let handshake_bytes = format!("00 00 00 01 00 00 00 02 {remote} {}", counted.join(" "));
    let offer = Offer {
        server: disco(&remote),
        clients,
        lamport: 123,
        vni: 456,
        bind_lifetime: Duration::from_secs(1),
        steady_lifetime: Duration::from_secs(60),
        addresses: vec!["1.2.3.4:567".parse().unwrap(), "[2001::3456]:789".parse().unwrap()],
    };
    let offer_bytes = format!(
        "{remote} {first} {second} 00 00 00 00 00 00 00 7b 00 00 01 c8 00 00 00 00 3b 9a ca 00 \
         00 00 00 0d f8 47 58 00 00 00 00 00 00 00 00 00 00 00 ff ff 01 02 03 04 02 37 \
         20 01 00 00 00 00 00 00 00 00 00 00 00 00 34 56 03 15"
    );
    for (message, bytes) in [
        (PeerRelay::Bind(handshake.clone()), format!("04 00 {handshake_bytes}")),
        (PeerRelay::Challenge(handshake.clone()), format!("05 00 {handshake_bytes}")),
        (PeerRelay::Answer(handshake), format!("06 00 {handshake_bytes}")),
        (PeerRelay::CallMeMaybeVia(offer.clone()), format!("07 00 {offer_bytes}")),
        (PeerRelay::Allocate { clients, generation: 1 }, format!("08 00 {first} {second} 00 00 00 01")),
        (PeerRelay::Allocated { generation: 1, offer }, format!("09 00 00 00 00 01 {offer_bytes}")),
    ] {
        let message = Message::PeerRelay(message);
        assert_eq!(encode(&message), hex(&bytes), "{message:?}");
        assert_eq!(Message::decode(&hex(&bytes)), Ok(message));
        let whole = hex(&bytes);
        assert_eq!(Message::decode(&whole[..whole.len() - 1]), Err(DiscoError::Short { kind: whole[0] }));
    }
}

#[test]
fn later_peer_relay_messages_are_let_pass_and_unknown_types_refused() {
    for kind in 7..=9 {
        let later = Ok(Message::PeerRelay(PeerRelay::Later { kind, version: 1 }));
        assert_eq!(Message::decode(&[kind, 1, 2, 3]), later);
    }
    for kind in [0, 10, 255] {
        assert_eq!(Message::decode(&[kind, 0]), Err(DiscoError::UnknownType { kind }));
    }
}

#[test]
fn short_messages_are_errors() {
    assert_eq!(Message::decode(&[]), Err(DiscoError::Short { kind: 0 }));
    assert_eq!(Message::decode(&[1]), Err(DiscoError::Short { kind: 1 }));
    assert_eq!(Message::decode(&[[1, 0].as_slice(), &[0; 11]].concat()), Err(DiscoError::Short { kind: 1 }));
    assert_eq!(Message::decode(&[[2, 0].as_slice(), &[0; 29]].concat()), Err(DiscoError::Short { kind: 2 }));
}

#[test]
fn a_call_me_maybe_of_odd_length_or_version_has_no_endpoints() {
    let empty = Ok(Message::CallMeMaybe { endpoints: Vec::new() });
    assert_eq!(Message::decode(&[[3, 0].as_slice(), &[1; 19]].concat()), empty);
    assert_eq!(Message::decode(&[[3, 1].as_slice(), &[1; 18]].concat()), empty);
}

#[test]
fn endpoints_have_a_bound_both_ways() {
    let many = Message::CallMeMaybe { endpoints: vec!["1.2.3.4:5".parse().unwrap(); MAX_ENDPOINTS + 10] };
    let Ok(Message::CallMeMaybe { endpoints }) = Message::decode(&encode(&many)) else { panic!() };
    assert_eq!(endpoints.len(), MAX_ENDPOINTS);
    let Ok(Message::CallMeMaybe { endpoints }) = Message::decode(&[[3, 0].as_slice(), &[1; 18 * 1000]].concat()) else {
        panic!()
    };
    assert_eq!(endpoints.len(), MAX_ENDPOINTS);
}

#[test]
fn a_sealed_message_opens_at_the_other_end_only() {
    let mut rng = StdRng::seed_from_u64(1);
    let (alice, bob, eve) =
        (DiscoPrivate::generate(&mut rng), DiscoPrivate::generate(&mut rng), DiscoPrivate::generate(&mut rng));
    let ping = Message::Ping { txid: TXID, node_key: Some(node_key()), padding: 5 };
    let mut packet = b"before".to_vec();
    seal(&ping, &alice, &bob.public(), &mut rng, &mut packet).unwrap();
    let packet = packet.split_off(6);
    assert_eq!(packet.len(), sealed_len(&ping));
    assert!(is_disco(&packet));
    assert_eq!(open(&packet, &bob), Ok((alice.public(), ping)));
    assert_eq!(open(&packet, &eve), Err(DiscoError::NotForUs));
    let other = SharedKey::new(&bob, &eve.public());
    assert_eq!(other.open(&packet), Err(DiscoError::NotForUs));
}

/// NaCl's own vector (`tests/box.c`): what it seals, we open.
#[test]
fn opens_what_nacl_sealed() {
    let secret = "5d ab 08 7e 62 4a 8a 4b 79 e1 7f 8b 83 80 0e e6 6f 3b b1 29 26 18 b6 fd 1c 2f 8b 27 ff 88 e0 eb";
    let public = "85 20 f0 09 89 30 a7 54 74 8b 7d dc b4 3e f7 5a 0d bf 3a 0d 26 38 1a f4 eb a4 a9 8e aa 9b 4e 6a";
    let nonce = "69 69 6e e9 55 b6 2b 73 cd 62 bd a8 75 fc 73 d6 82 19 e0 03 6b 7a 0b 37";
    let sealed = "f3 ff c7 70 3f 94 00 e5 2a 7d fb 4b 3d 33 05 d9 8e 99 3b 9f 48 68 12 73 c2 96 50 ba 32 fc 76 ce \
                  48 33 2e a7 16 4d 96 a4 47 6f b8 c5 31 a1 18 6a c0 df c1 7c 98 dc e8 7b 4d a7 f0 11 ec 48 c9 72 \
                  71 d2 c2 0f 9b 92 8f e2 27 0d 6f b8 63 d5 17 38 b4 8e ee e3 14 a7 cc 8a b9 32 16 45 48 e5 26 ae \
                  90 22 43 68 51 7a cf ea bd 6b b3 73 2b c0 e9 da 99 83 2b 61 ca 01 b6 de 56 24 4a 9e 88 d5 f9 b3 \
                  79 73 f6 22 a4 3d 14 a6 59 9b 1f 65 4c b4 5a 74 e3 55 a5";
    let key = |text: &str| -> [u8; 32] { hex(text).try_into().unwrap() };
    let shared = NaclBox::new(&key(secret), &key(public));
    let text = shared.open(&[hex(nonce), hex(sealed)].concat()).unwrap();
    assert!(text.starts_with(&hex("be 07 5f c5 3c 81 f2 d5 cf 14 13 16 eb eb 0c 7b")), "{text:02x?}");
    assert_eq!(text.len(), 131);
}

#[test]
fn what_cannot_be_sealed_is_an_error() {
    let mut rng = StdRng::seed_from_u64(2);
    let (alice, bob) = (DiscoPrivate::generate(&mut rng), DiscoPrivate::generate(&mut rng));
    let shared = SharedKey::new(&alice, &bob.public());
    let pong = Message::Pong { txid: TXID, observed: "1.2.3.4:5".parse().unwrap() };
    let needed = sealed_len(&pong);
    assert_eq!(
        shared.seal(&pong, &mut rng, &mut vec![0; needed - 1]),
        Err(DiscoError::NoRoom { needed, room: needed - 1 })
    );
    assert_eq!(shared.seal(&pong, &mut rng, &mut [0; 1500]), Ok(needed));
}

#[test]
fn debug_shows_no_key() {
    let shared = SharedKey::new(&DiscoPrivate::from_bytes([1; 32]), &DiscoPrivate::from_bytes([2; 32]).public());
    assert!(format!("{shared:?}").ends_with("redacted)"));
}

fn any_message() -> impl Strategy<Value = Message> {
    let key = proptest::option::of(any::<[u8; 32]>().prop_map(|mut bytes| {
        bytes[0] |= 1;
        NodePublic::from_bytes(bytes)
    }));
    let txid = any::<[u8; 12]>().prop_map(TransactionId);
    // IPv4 mapped into IPv6 reads as IPv4.
    let endpoint = any::<(std::net::IpAddr, u16)>().prop_map(|(ip, port)| SocketAddr::new(ip.to_canonical(), port));
    prop_oneof![
        (txid.clone(), key, 0..1400usize).prop_map(|(txid, node_key, padding)| Message::Ping {
            txid,
            node_key,
            padding
        }),
        (txid, endpoint.clone()).prop_map(|(txid, observed)| Message::Pong { txid, observed }),
        proptest::collection::vec(endpoint, 0..=MAX_ENDPOINTS).prop_map(|endpoints| Message::CallMeMaybe { endpoints }),
    ]
}

proptest! {
    #[test]
    fn messages_round_trip(message in any_message(), seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        let (alice, bob) = (DiscoPrivate::generate(&mut rng), DiscoPrivate::generate(&mut rng));
        let mut packet = [0xff; 4096];
        let len = SharedKey::new(&alice, &bob.public()).seal(&message, &mut rng, &mut packet).unwrap();
        prop_assert_eq!(open(&packet[..len], &bob), Ok((alice.public(), message)));
    }

    #[test]
    fn any_text_is_a_message_or_an_error(text: Vec<u8>) {
        drop(Message::decode(&text));
    }

    #[test]
    fn any_bytes_are_a_packet_or_an_error(mut packet: Vec<u8>, magic: bool) {
        if magic {
            packet.splice(..0, MAGIC);
        }
        prop_assert!(open(&packet, &DiscoPrivate::from_bytes([3; 32])).is_err());
    }
}
