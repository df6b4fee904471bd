//! The vectors were made once with Go's `control/controlbase` of tailscale.com v1.102.5, `crypto/rand` replaced by a
//! reader that gives out 0x10.., 0x20.., 0x30.., 0x40.. in turn.

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::key::{MachinePrivate, MachinePublic};

const VERSION: u16 = 113;
const INITIATION: &str = "007101006034e42d4af5ef94a07a3a84201b889d4cd1a743cb27b11b6a10438a8feb8e58470d188c1c38c9e55b2c6a854d12548ff8509313e539bdb9fbac26a84c106a65dc315fe78b75547f455b306af2910e16f421b4e53ba54b566f087ee2c364815b6b";
const RESPONSE: &str =
    "02003079a631eede1bf9c98f12032cdeadd0e7a079398fc786b88cc846ec89af85a51a3598e9334e9715a79dd27ef62b3f13ad";
const FROM_CLIENT: &str = "040015f9c5b64ea158675977bdaf1f0e648c607c4abd0ed204001f9690f3ee3c31076e60d7e35e03efdad74fb4b06adf0afe058d208a36792165";
const FROM_SERVER: &str = "040015b21d3ef3530e4ef92df73d7c592872b802780b981a04001f352501bd6fac1b42d44a27566910100529e17288cd5a225882f1e1b5656a0e";

/// Gives out bytes that count up from a start, like the RNG that made the vectors.
struct Counting(u8);

impl rand_core::TryRng for Counting {
    type Error = std::convert::Infallible;
    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        unreachable!("keys are drawn as bytes")
    }
    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        unreachable!("keys are drawn as bytes")
    }
    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Self::Error> {
        out.iter_mut().zip(self.0..).for_each(|(byte, n)| *byte = n);
        Ok(())
    }
}
impl rand_core::TryCryptoRng for Counting {}

fn counting_key(start: u8) -> MachinePrivate {
    MachinePrivate::generate(&mut Counting(start))
}

fn unhex(text: &str) -> Vec<u8> {
    text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn done(progress: HandshakeProgress) -> Records {
    match progress {
        HandshakeProgress::Done(records) => records,
        HandshakeProgress::Waiting(_) => panic!("the handshake isn't done"),
    }
}

/// Both ends of a connection with random keys.
fn connection(seed: u64) -> (Records, Records) {
    let mut rng = StdRng::seed_from_u64(seed);
    let (machine, control) = (MachinePrivate::generate(&mut rng), MachinePrivate::generate(&mut rng));
    let (initiator, initiation) = Initiator::new(VERSION, &machine, &control.public(), &mut rng).unwrap();
    let accepted = respond(&control, &initiation, &mut rng).unwrap();
    assert_eq!((accepted.machine, accepted.version), (machine.public(), VERSION));
    (done(initiator.handle_bytes(&accepted.response).unwrap()), accepted.records)
}

#[test]
fn initiator_matches_go() {
    let (machine, control) = (counting_key(0x10), counting_key(0x20));
    let (initiator, initiation) = Initiator::new(VERSION, &machine, &control.public(), &mut Counting(0x30)).unwrap();
    assert_eq!(initiation.to_vec(), unhex(INITIATION));
    let mut from_server = unhex(RESPONSE);
    from_server.extend(unhex(FROM_SERVER));
    let mut records = done(initiator.handle_bytes(&from_server).unwrap());
    let mut text = Vec::new();
    records.opener.open(&[], &mut text).unwrap();
    assert_eq!(text, b"hellofrom the server");
    let mut sealed = Vec::new();
    records.sealer.seal(b"hello", &mut sealed).unwrap();
    records.sealer.seal(b"from the client", &mut sealed).unwrap();
    assert_eq!(sealed, unhex(FROM_CLIENT));
}

#[test]
fn responder_matches_go() {
    let control = counting_key(0x20);
    let mut accepted = respond(&control, &unhex(INITIATION), &mut Counting(0x40)).unwrap();
    assert_eq!(accepted.response.to_vec(), unhex(RESPONSE));
    assert_eq!(accepted.machine, counting_key(0x10).public());
    let mut text = Vec::new();
    accepted.records.opener.open(&unhex(FROM_CLIENT), &mut text).unwrap();
    assert_eq!(text, b"hellofrom the client");
}

#[test]
fn wrong_server_key_and_changed_bytes_are_refused() {
    let mut rng = StdRng::seed_from_u64(1);
    let (machine, control, other) = (counting_key(1), counting_key(2), counting_key(3));
    let (_, initiation) = Initiator::new(VERSION, &machine, &other.public(), &mut rng).unwrap();
    assert_eq!(respond(&control, &initiation, &mut rng).err(), Some(NoiseError::Decrypt));

    for at in 0..INITIATION_LEN {
        let (_, mut initiation) = Initiator::new(VERSION, &machine, &control.public(), &mut rng).unwrap();
        initiation[at] ^= 1;
        assert!(respond(&control, &initiation, &mut rng).is_err(), "byte {at}");
    }
    for at in 0..RESPONSE_LEN {
        let (initiator, initiation) = Initiator::new(VERSION, &machine, &control.public(), &mut rng).unwrap();
        let mut response = respond(&control, &initiation, &mut rng).unwrap().response;
        response[at] ^= 1;
        let refused = !matches!(initiator.handle_bytes(&response), Ok(HandshakeProgress::Done(_)));
        assert!(refused, "byte {at}");
    }
}

#[test]
fn worthless_server_key_is_refused() {
    let zero = MachinePublic::from_bytes([0; 32]);
    let refused = Initiator::new(VERSION, &counting_key(1), &zero, &mut Counting(2)).err();
    assert_eq!(refused, Some(NoiseError::WeakKey));
}

#[test]
fn error_frames_say_why() {
    let (initiator, _) =
        Initiator::new(VERSION, &counting_key(1), &counting_key(2).public(), &mut Counting(3)).unwrap();
    let mut frame = Vec::new();
    write_error("too old\u{1b}[31m", &mut frame);
    let refused = initiator.handle_bytes(&frame).err();
    assert_eq!(refused, Some(NoiseError::Refused("too old [31m".to_owned())));
}

#[test]
fn oversized_and_short_frames_are_refused() {
    for (frame, error) in [
        (vec![4, 0x0f, 0xfe], NoiseError::Length(MAX_FRAME + 1)),
        (vec![4, 0, 15, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], NoiseError::Length(15)),
        (vec![9, 0, 0], NoiseError::UnexpectedFrame(9)),
    ] {
        let (mut client, _) = connection(1);
        let mut out = Vec::new();
        assert_eq!(client.opener.open(&frame, &mut out), Err(error.clone()));
        assert_eq!(client.opener.open(&[], &mut out), Err(error), "and stays so");
    }
}

#[test]
fn empty_records_are_legal() {
    let (mut client, mut server) = connection(2);
    let mut wire = Vec::new();
    client.sealer.seal_record(b"", &mut wire).unwrap();
    client.sealer.seal(b"x", &mut wire).unwrap();
    let mut text = Vec::new();
    server.opener.open(&wire, &mut text).unwrap();
    assert_eq!(text, b"x");
}

#[test]
fn early_payload_is_taken_out() {
    let mut stream = Vec::new();
    write_early_payload(br#"{"nodeKeyChallenge":"chalpub:00"}"#, &mut stream);
    stream.extend_from_slice(b"\0\0\0\x04\0\0\0\0\0 and more");
    let mut too_long = b"\xff\xff\xffTS".to_vec();
    too_long.extend_from_slice(&(10_485_761_u32).to_be_bytes());
    let refused = EarlyPayload::default().handle_bytes(&too_long, &mut Vec::new());
    assert_eq!(refused, Err(NoiseError::EarlyPayloadLength(10_485_761)));
    for cut in 0..stream.len() {
        let (mut early, mut out) = (EarlyPayload::default(), Vec::new());
        for part in [&stream[..cut], &stream[cut..]] {
            early.handle_bytes(part, &mut out).unwrap();
        }
        assert_eq!(out, b"\0\0\0\x04\0\0\0\0\0 and more", "cut at {cut}");
    }
    let (mut early, mut out) = (EarlyPayload::default(), Vec::new());
    for byte in b"\0\0\x12\x04\0\0\0\0\0settings" {
        early.handle_bytes(&[*byte], &mut out).unwrap();
    }
    assert_eq!(out, b"\0\0\x12\x04\0\0\0\0\0settings", "a stream without one passes");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_in_any_cut_come_out_the_same(text in prop::collection::vec(any::<u8>(), 0..20_000), cut in 1_usize..5000) {
        let (mut client, mut server) = connection(7);
        let mut wire = Vec::new();
        client.sealer.seal(&text, &mut wire).unwrap();
        let mut out = Vec::new();
        for part in wire.chunks(cut) {
            server.opener.open(part, &mut out).unwrap();
        }
        prop_assert_eq!(out, text);
    }

    #[test]
    fn changed_or_alien_bytes_are_errors(alien in prop::collection::vec(any::<u8>(), 0..300), at in any::<prop::sample::Index>()) {
        let (mut client, mut server) = connection(8);
        let mut wire = Vec::new();
        client.sealer.seal(&[1; 5000], &mut wire).unwrap();
        let at = at.index(wire.len());
        wire[at] ^= 0x10;
        let mut out = Vec::new();
        let result = server.opener.open(&wire, &mut out);
        prop_assert!(result.is_err() || out.len() < 5000);
        let _ = client.opener.open(&alien, &mut out);
        let _ = respond(&counting_key(1), &alien, &mut Counting(1));
    }
}
