use proptest::prelude::*;

use super::*;

fn hex(text: &str) -> Vec<u8> {
    let text: String = text.split_whitespace().collect();
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

/// Answers of servers out there: the table of `net/stun/stun_test.go`.
const RESPONSES: &[(&str, &str, &str)] = &[
    ("google-1", "0101000c2112a4422360b11e3ec68ffa93e08007002000080001c7866957856f", "72.69.33.45:59028"),
    ("google-2", "0101000c2112a442f9f121cbde7d7c75923ce271002000080001c7876957856f", "72.69.33.45:59029"),
    (
        "stun-sipgate-net-10000",
        "010100442112a442482eb64715e8b28eaead6444000100080001e4ab4845212d0004000800012710 \
        d90a44980005000800012711d9747a8a802000080001c5b96957856f80220010566f766964612e6f \
        726720302e393600",
        "72.69.33.45:58539",
    ),
    (
        "stun-powervoip-com-3478",
        "010100242112a4427e57966829f444609d1deaa6000100080001e9d34845212d0004000800010d96 \
        4d48a9d40005000800010d974d48a9d5",
        "72.69.33.45:59859",
    ),
    (
        "in-process-pion-server",
        "010100242112a442ebc2d36ef471217c4f3e308e8022000a656e64706f696e746572000000200008 \
        0001ce665e12a44380280004b699bb02010100242112a442",
        "127.0.0.1:61300",
    ),
    (
        "stuntman-server-ipv6",
        "010100482112a44206f56685d28af3e69ce341e200010014000290ce260200d1b4cfc10038b231ff \
        feef96f6802b001400020d962604a880000200d10000000000c57001002000140002b1dc0710a493 \
        b23aa785ea38c219620cd714",
        "[2602:d1:b4cf:c100:38b2:31ff:feef:96f6]:37070",
    ),
    (
        "software-a",
        "010100142112a442ebc2d36ef471217c4f3e308e8022000161000000002000080001ce665e12a443",
        "127.0.0.1:61300",
    ),
    (
        "software-abc",
        "010100142112a442ebc2d36ef471217c4f3e308e8022000361626300002000080001ce665e12a443",
        "127.0.0.1:61300",
    ),
    (
        "no-4in6",
        "010100182112a4424fd5d202dcb37d31fc773306002000140002cd3d2112a4424fd5d202dcb382ce \
        2dc3fcc7",
        "209.180.207.193:60463",
    ),
];

#[test]
fn answers_of_real_servers() {
    for (name, datagram, address) in RESPONSES {
        let datagram = hex(datagram);
        let (txid, found) = parse_response(&datagram).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(found, address.parse().unwrap(), "{name}");
        assert_eq!(txid.0, datagram[8..20], "{name}");
    }
}

/// The check value that every description of this CRC gives.
#[test]
fn the_fingerprint_is_a_crc32() {
    assert_eq!(fingerprint(b"123456789"), 0xcbf4_3926 ^ FINGERPRINT_XOR);
}

#[test]
fn a_request_is_laid_out_as_servers_expect() {
    let txid = TransactionId([7; 12]);
    let request = request(txid);
    assert_eq!(request.len(), REQUEST_LEN);
    assert_eq!(request[..8], [0, 1, 0, 20, 0x21, 0x12, 0xa4, 0x42]);
    // derp/xdp reads SOFTWARE at this place.
    assert_eq!(request[20..32], *b"\x80\x22\x00\x08tailnode");
    assert_eq!(request[32..36], [0x80, 0x28, 0, 4]);
    assert_eq!(parse_request(&request), Ok(txid));
}

#[test]
fn requests_of_others_are_refused() {
    let good = request(TransactionId([7; 12]));
    let mut other_software = good.clone();
    other_software[24] = b'T';
    assert_eq!(parse_request(&other_software), Err(StunError::WrongSoftware));
    let mut wrong_sum = good.clone();
    wrong_sum[39] ^= 1;
    assert_eq!(parse_request(&wrong_sum), Err(StunError::WrongFingerprint));
    let mut without = good[..32].to_vec();
    without[3] = 12;
    assert_eq!(parse_request(&without), Err(StunError::WrongFingerprint));
    let answer = response(TransactionId([7; 12]), "1.2.3.4:5".parse().unwrap());
    assert_eq!(parse_request(&answer), Err(StunError::NotBindingRequest));
    assert_eq!(parse_response(&good), Err(StunError::NotSuccess));
}

#[test]
fn answers_that_say_nothing_are_errors() {
    let txid = TransactionId([1; 12]);
    assert_eq!(parse_response(&header(BINDING_SUCCESS, txid, 0)), Err(StunError::NoAddress));
    assert_eq!(parse_response(&header(BINDING_SUCCESS, txid, 4)), Err(StunError::Malformed));
    for value in [&[][..], &[0, 1, 2, 3], &[0, 2, 0, 0, 1, 2, 3, 4], &[0, 3, 0, 0, 1, 2, 3, 4]] {
        let mut message = header(BINDING_SUCCESS, txid, 4 + value.len());
        put_attribute(&mut message, XOR_MAPPED_ADDRESS, value);
        assert_eq!(parse_response(&message), Err(StunError::Malformed), "{value:?}");
    }
}

#[test]
fn what_is_stun_and_what_not() {
    let tail = [0; 12];
    let packet = |first: u8| [&[first, 0, 0, 0][..], &MAGIC_COOKIE, &tail].concat();
    assert!(is_stun(&packet(0)));
    assert!(is_stun(&packet(0x20)));
    assert!(!is_stun(&packet(0x40)));
    assert!(!is_stun(&packet(0xf0)));
    assert!(!is_stun(&packet(0)[..19]));
    assert!(!is_stun(&[0; 20]));
    assert!(!is_stun(&[]));
}

proptest! {
    #[test]
    fn responses_round_trip(txid: [u8; 12], ip: IpAddr, port: u16) {
        let (txid, source) = (TransactionId(txid), SocketAddr::new(ip.to_canonical(), port));
        prop_assert_eq!(parse_response(&response(txid, source)), Ok((txid, source)));
    }

    #[test]
    fn any_bytes_are_a_message_or_an_error(rest: Vec<u8>, kind in prop_oneof![Just([0u8, 1]), Just([1, 1])]) {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        let message = [&kind[..], &length, &MAGIC_COOKIE, &[5; 12], &rest].concat();
        let _ = parse_response(&message);
        let _ = parse_request(&message);
    }
}
