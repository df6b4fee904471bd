use proptest::prelude::*;

use super::*;

/// All events in `bytes`, read in pieces of `piece` bytes; output of one kind is joined.
fn events(bytes: &[u8], piece: usize) -> Result<Vec<Event<'static>>, FrameError> {
    let (mut decoder, mut events) = (Decoder::new(), Vec::new());
    for mut piece in bytes.chunks(piece.max(1)) {
        while let Some(event) = decoder.next_event(&mut piece)? {
            let event = match event {
                Event::Output(output, data) => Event::Output(output, data.to_vec().leak()),
                Event::Accepted => Event::Accepted,
                Event::Refused(kind, words) => Event::Refused(kind, words),
                Event::Ended(code, words) => Event::Ended(code, words),
            };
            match (&event, events.last_mut()) {
                (Event::Output(new, data), Some(Event::Output(last, before))) if new == last => {
                    *before = [*before, data].concat().leak();
                }
                _ => events.push(event),
            }
        }
        assert!(piece.is_empty(), "what is no event yet is kept by the decoder");
    }
    Ok(events)
}

fn output(kind: Output, data: &[u8]) -> Vec<u8> {
    [&output_header(kind, data.len())[..], data].concat()
}

#[test]
fn the_first_bytes_tell_the_protocol() {
    for (first, told) in [
        ("nixtail-direct 1 bob nix-daemon --stdio\n", Some(Protocol::Direct)),
        ("nixtail-direct 9", Some(Protocol::Direct)),
        ("", None),
        ("nixtail-direct", None),
        ("n", None),
        ("SSH-2.0-OpenSSH_9.2\r\n", Some(Protocol::Ssh)),
        ("S", Some(Protocol::Ssh)),
        ("nixtail-control 1 ping", Some(Protocol::Ssh)),
        ("GET / HTTP/1.1", Some(Protocol::Ssh)),
    ] {
        assert_eq!(protocol_of(first.as_bytes()), told, "{first}");
    }
}

#[test]
fn a_request_is_this_line_and_what_follows_is_input() {
    let request = Request::new("bob", "nix-daemon --stdio --store '/a b'").unwrap();
    let line = request.to_string();
    assert_eq!(line, "nixtail-direct 1 bob nix-daemon --stdio --store '/a b'\n");
    let sent = [line.as_bytes(), b"\x6e\x69more\n"].concat();
    assert_eq!(Request::read(&sent), Ok(Some((request.clone(), line.len()))));
    assert_eq!((request.login(), request.command()), ("bob", "nix-daemon --stdio --store '/a b'"));
    for end in 0..line.len() {
        assert_eq!(Request::read(&sent[..end]), Ok(None), "{end}");
    }
}

#[test]
fn what_is_no_request_is_refused() {
    let read = |line: &str| Request::read(line.as_bytes()).unwrap_err().to_string();
    assert!(read("SSH-2.0-x\n").contains("nixtail-direct"));
    assert!(read("nixtail-direct\n").contains("nixtail-direct"));
    assert!(read("nixtail-direct 2 bob x\n").contains("nixtail-direct 2 isn't spoken here, only 1"));
    assert!(read("nixtail-direct \n").contains("isn't spoken"));
    for line in ["nixtail-direct 1\n", "nixtail-direct 1 bob\n", "nixtail-direct 1 bob \n"] {
        assert_eq!(Request::read(line.as_bytes()), Err(RequestError::Incomplete), "{line}");
    }
    for login in ["", "a b", "a\tb", "a\u{1b}b", &"x".repeat(257)] {
        assert!(Request::new(login, "x").is_err(), "{login}");
    }
    assert!(matches!(Request::read(b"nixtail-direct 1  nix-daemon --stdio\n"), Err(RequestError::Login(_))));
    assert_eq!(Request::read(b"nixtail-direct 1 \xff x\n"), Err(RequestError::NotText));
    assert_eq!(Request::new("bob", "a\nb"), Err(RequestError::Command));
    assert_eq!(Request::new("bob", &"x".repeat(5000)), Err(RequestError::Command));

    let endless = [b"nixtail-direct 1 bob ".as_slice(), &[b'x'; 10_000]].concat();
    assert_eq!(Request::read(&endless[..MAX_REQUEST - 1]), Ok(None));
    assert_eq!(Request::read(&endless[..MAX_REQUEST]), Err(RequestError::TooLong));
    let longest = Request::new(&"l".repeat(256), &"c".repeat(crate::nix_command::MAX_COMMAND_LENGTH)).unwrap();
    assert!(Request::read(longest.to_string().as_bytes()).unwrap().is_some());
}

#[test]
fn frames_are_these_bytes() {
    assert_eq!(accepted(), [1, 0, 0, 0]);
    assert_eq!(refused(RefusalKind::Command, "no"), b"\x02\x00\x00\x03\x02no");
    assert_eq!(output_header(Output::Data, MAX_PAYLOAD), [3, 1, 0, 0]);
    assert_eq!(output_header(Output::Stderr, 258), [4, 0, 1, 2]);
    assert_eq!(ended(0x0102, ""), [5, 0, 0, 4, 0, 0, 1, 2]);
    assert_eq!(ended(7, "é"), [5, 0, 0, 6, 0, 0, 0, 7, 0xc3, 0xa9]);
    // Words are cut where a character ends.
    let cut = ended(0, &format!("x{}", "é".repeat(MAX_WORDS)));
    assert_eq!(cut.len(), HEADER_LENGTH + 4 + MAX_WORDS - 1);
    let Ok(events) = events(&[&accepted()[..], &cut].concat(), 100) else { panic!("what we write we read") };
    assert!(matches!(&events[1], Event::Ended(0, words) if words.chars().count() == MAX_WORDS / 2));
}

#[test]
fn a_session_is_read_in_pieces_of_any_size() {
    let session = [
        &accepted()[..],
        &output(Output::Data, b"hello "),
        &output(Output::Data, b""),
        &output(Output::Data, &[b'w'; 300]),
        &output(Output::Stderr, b"words\n"),
        &output(Output::Data, b"!"),
        &ended(3, "it\x1b[31m ended\r\nbadly "),
    ]
    .concat();
    for piece in 1..session.len() + 1 {
        let wanted = vec![
            Event::Accepted,
            Event::Output(Output::Data, [b"hello ".as_slice(), &[b'w'; 300]].concat().leak()),
            Event::Output(Output::Stderr, b"words\n"),
            Event::Output(Output::Data, b"!"),
            Event::Ended(3, "it [31m ended badly".to_owned()),
        ];
        assert_eq!(events(&session, piece), Ok(wanted), "{piece}");
    }
}

#[test]
fn output_is_handed_out_where_it_lies() {
    let read = [&accepted()[..], &output(Output::Data, b"payload")].concat();
    let (mut decoder, mut rest) = (Decoder::new(), read.as_slice());
    assert_eq!(decoder.next_event(&mut rest), Ok(Some(Event::Accepted)));
    let Ok(Some(Event::Output(Output::Data, piece))) = decoder.next_event(&mut rest) else { panic!("there is output") };
    assert_eq!(piece.as_ptr(), read[2 * HEADER_LENGTH..].as_ptr());
    assert!(!decoder.is_over());
}

#[test]
fn a_refusal_is_an_answer_and_the_last() {
    let kinds = [RefusalKind::Policy, RefusalKind::Busy, RefusalKind::NotStarted, RefusalKind::Protocol];
    for kind in kinds.into_iter().chain([RefusalKind::Command, RefusalKind::Other(99)]) {
        let bytes = refused(kind, "because");
        assert_eq!(events(&bytes, 3), Ok(vec![Event::Refused(kind, "because".to_owned())]));
        assert_ne!(kind.exit_code(), 0);
        let more = [bytes, accepted().to_vec()].concat();
        assert_eq!(events(&more, 100), Err(FrameError::OutOfTurn(1)));
    }
}

#[test]
fn what_makes_no_sense_is_an_error() {
    let after_accepted = |bytes: &[u8]| events(&[&accepted()[..], bytes].concat(), 5);
    assert_eq!(events(b"SSH-2.0-Tailscale-nixtail\r\n", 100), Err(FrameError::Ssh));
    assert_eq!(after_accepted(b"SSH-"), Err(FrameError::UnknownKind(b'S')));
    assert_eq!(events(&[0, 0, 0, 0], 1), Err(FrameError::UnknownKind(0)));
    assert_eq!(events(&[1, 0, 0, 1, 0], 1), Err(FrameError::Length { kind: 1, length: 1 }));
    assert_eq!(events(&[2, 0, 0, 0], 1), Err(FrameError::Length { kind: 2, length: 0 }));
    assert_eq!(events(&[2, 0, 4, 2], 1), Err(FrameError::Length { kind: 2, length: MAX_WORDS + 2 }));
    assert_eq!(after_accepted(&[3, 1, 0, 1]), Err(FrameError::Length { kind: 3, length: MAX_PAYLOAD + 1 }));
    assert_eq!(after_accepted(&[5, 0, 0, 3]), Err(FrameError::Length { kind: 5, length: 3 }));
    assert_eq!(after_accepted(&accepted()), Err(FrameError::OutOfTurn(1)));
    assert_eq!(events(&output(Output::Data, b"early"), 9), Err(FrameError::OutOfTurn(3)));
    assert_eq!(
        after_accepted(&[&ended(0, "")[..], &output(Output::Data, b"late")].concat()),
        Err(FrameError::OutOfTurn(3))
    );
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..600), piece in 1usize..50) {
        let (mut decoder, mut failed) = (Decoder::new(), false);
        for mut piece in bytes.chunks(piece) {
            while !failed {
                match decoder.next_event(&mut piece) {
                    Ok(Some(Event::Output(_, data))) => prop_assert!(data.len() <= MAX_PAYLOAD),
                    Ok(Some(Event::Refused(_, words) | Event::Ended(_, words))) => {
                        prop_assert!(!words.chars().any(char::is_control));
                    }
                    Ok(Some(Event::Accepted)) => {}
                    Ok(None) => break,
                    Err(_) => failed = true,
                }
            }
        }
        // A request that is read is one that could have been written.
        if let Ok(Some((request, length))) = Request::read(&bytes) {
            let line = request.to_string();
            prop_assert_eq!(line.as_bytes(), &bytes[..length]);
        }
    }

    #[test]
    fn what_is_sent_arrives(
        pieces in proptest::collection::vec((any::<bool>(), proptest::collection::vec(any::<u8>(), 0..300)), 0..20),
        code in any::<u32>(),
        piece in 1usize..700,
    ) {
        let mut sent = accepted().to_vec();
        let (mut data, mut errors) = (Vec::new(), Vec::new());
        for (is_data, bytes) in &pieces {
            sent.extend(output(if *is_data { Output::Data } else { Output::Stderr }, bytes));
            (if *is_data { &mut data } else { &mut errors }).extend_from_slice(bytes);
        }
        sent.extend(ended(code, "done"));
        let (mut got_data, mut got_errors) = (Vec::new(), Vec::new());
        let mut last = None;
        for event in events(&sent, piece).unwrap() {
            match event {
                Event::Output(Output::Data, bytes) => got_data.extend_from_slice(bytes),
                Event::Output(Output::Stderr, bytes) => got_errors.extend_from_slice(bytes),
                other => last = Some(other),
            }
        }
        prop_assert_eq!(got_data, data);
        prop_assert_eq!(got_errors, errors);
        prop_assert_eq!(last, Some(Event::Ended(code, "done".to_owned())));
    }

    #[test]
    fn any_request_survives_the_line(login in "[a-z][a-z0-9_.@+-]{0,40}", command in "[ -~]{1,200}") {
        let request = Request::new(&login, &command).unwrap();
        let line = request.to_string();
        prop_assert_eq!(protocol_of(line.as_bytes()), Some(Protocol::Direct));
        prop_assert_eq!(Request::read(line.as_bytes()), Ok(Some((request, line.len()))));
    }
}
