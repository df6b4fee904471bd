use super::*;

const STORE: &str = "/home/bob/a store";

fn daemon(store: Option<&str>, process_ops: bool) -> NixCommand {
    NixCommand::Daemon { store: store.map(str::to_owned), process_ops }
}

#[test]
fn what_each_version_of_nix_sends_is_read() {
    // The lines of `reference/nix-remote-builds.md` §1.1, with and without remote-store.
    let serve = |store: Option<&str>| NixCommand::Serve { store: store.map(str::to_owned) };
    let cases = [
        ("nix-daemon --stdio", daemon(None, false)),
        ("nix daemon --stdio", daemon(None, false)),
        ("nix-daemon --stdio --store '/home/bob/a store'", daemon(Some(STORE), false)),
        ("nix-daemon --stdio --store /home/bob/a store", daemon(Some(STORE), false)),
        ("nix-daemon --stdio --store /home/bob/a store --process-ops", daemon(Some(STORE), true)),
        ("nix-daemon --stdio --process-ops", daemon(None, true)),
        ("nix-store --serve --write", serve(None)),
        ("nix-store --serve --write --store '/home/bob/a store'", serve(Some(STORE))),
        ("nix-store --serve --write --store /home/bob/a store", serve(Some(STORE))),
    ];
    for (line, wanted) in cases {
        assert_eq!(parse_command(line.as_bytes(), Some(STORE)), Ok(wanted), "{line}");
    }
}

#[test]
fn quotes_within_a_quoted_store_are_undone() {
    let line = r"nix-daemon --stdio --store '/it'\''s'";
    assert_eq!(parse_command(line.as_bytes(), Some("/it's")), Ok(daemon(Some("/it's"), false)));
    for line in ["nix-daemon --stdio --store '/it's'", "nix-daemon --stdio --store '/x", "nix-daemon --stdio --store '"]
    {
        assert!(matches!(parse_command(line.as_bytes(), Some("/it's")), Err(CommandRefusal::Quoting(_))), "{line}");
    }
}

#[test]
fn a_foreign_store_is_refused() {
    for (line, published) in [
        ("nix-daemon --stdio --store /etc", Some(STORE)),
        ("nix-daemon --stdio --store '/etc'", Some(STORE)),
        ("nix-daemon --stdio --store ", Some(STORE)),
        ("nix-daemon --stdio --store daemon", None),
        ("nix-store --serve --write --store local?root=/", Some(STORE)),
        // The rest of the line belongs to the store: no second option can hide behind it.
        ("nix-daemon --stdio --store /home/bob/a store --option sandbox false", Some(STORE)),
    ] {
        let refusal = parse_command(line.as_bytes(), published).unwrap_err();
        assert!(matches!(refusal, CommandRefusal::ForeignStore { .. }), "{line}: {refusal}");
    }
}

#[test]
fn all_else_is_refused() {
    for line in [
        "sh",
        "true",
        "nix-daemon",
        "nix-daemon --stdio ",
        "nix-daemon  --stdio",
        " nix-daemon --stdio",
        "nix-daemon --stdio; id",
        "nix-daemon --stdio --option sandbox false",
        "nix-daemon --stdio --force-trusted",
        "nix-daemon --stdiox",
        "/usr/bin/nix-daemon --stdio",
        "nix-store --serve",
        "nix-store --serve --write --process-ops",
        "nix-store --delete /nix/store/x",
        "nix-daemon --stdio --store",
        "nix-daemon --stdio --store=/x",
        "nix-daemon --stdio --process-ops --store /x",
        "internal-sftp",
        "nixtail-control",
    ] {
        let refusal = parse_command(line.as_bytes(), None).unwrap_err();
        assert!(matches!(refusal, CommandRefusal::NotAllowed(_)), "{line}: {refusal}");
    }
    assert_eq!(parse_command(b"", None), Err(CommandRefusal::Shell));
}

#[test]
fn unreadable_lines_are_refused_and_never_shown() {
    for line in
        [&b"nix-daemon --stdio\nid"[..], b"\xff\xfe", b"nix-daemon\0 --stdio", "\u{202e}nix".as_bytes(), &[b'a'; 5000]]
    {
        assert_eq!(parse_command(line, None), Err(CommandRefusal::Unreadable));
    }
    let long = format!("{} x", "é".repeat(200));
    let refusal = parse_command(long.as_bytes(), None).unwrap_err().to_string();
    assert!(refusal.chars().count() < 220, "{refusal}");
}

#[test]
fn control_requests_are_read() {
    let request = ControlRequest { verb: ControlVerb::Claim, arguments: vec!["run-7.1".into(), "300".into()] };
    assert_eq!(request.to_command_line(), "nixtail-control 1 claim run-7.1 300");
    assert_eq!(parse_command(request.to_command_line().as_bytes(), None), Ok(NixCommand::Control(request)));
    let ping = ControlRequest { verb: ControlVerb::Ping, arguments: vec![] };
    assert_eq!(parse_command(b"nixtail-control 1 ping", None), Ok(NixCommand::Control(ping)));
}

#[test]
fn bad_control_requests_are_refused() {
    for line in ["nixtail-control 2 ping", "nixtail-control  ping", "nixtail-control 01 ping", "nixtail-control ping"] {
        assert!(matches!(parse_command(line.as_bytes(), None), Err(CommandRefusal::ControlProtocol { .. })), "{line}");
    }
    let many = format!("nixtail-control 1 claim{}", " a".repeat(17));
    for line in
        ["nixtail-control 1", "nixtail-control 1 reboot", "nixtail-control 1 stop ", "nixtail-control 1 stop $x", &many]
    {
        assert!(matches!(parse_command(line.as_bytes(), None), Err(CommandRefusal::Control(_))), "{line}");
    }
}

proptest::proptest! {
    #[test]
    fn no_input_panics(line in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        let _ = parse_command(&line, Some(STORE));
    }

    #[test]
    fn any_quoted_store_comes_back(store in "[^\\p{C}\\p{Z}]{1,40}") {
        let line = format!("nix-daemon --stdio --store '{}'", store.replace('\'', r"'\''"));
        proptest::prop_assert_eq!(parse_command(line.as_bytes(), Some(&store)), Ok(daemon(Some(&store), false)));
    }
}
