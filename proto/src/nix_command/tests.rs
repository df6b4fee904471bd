use super::*;

const STORE: &str = "/home/bob/a store";

fn daemon(store: Option<&str>, process_ops: bool) -> NixCommand {
    NixCommand::Daemon { store: store.map(str::to_owned), process_ops }
}

/// One line of `sent_by_nix.txt`.
struct Sent<'a> {
    first: u32,
    last: Option<u32>,
    scheme: &'a str,
    line: &'a str,
}

/// The minor number of `2.N`.
fn minor(version: &str) -> Option<u32> {
    (version != "-").then(|| version.strip_prefix("2.").unwrap().parse().unwrap())
}

fn sent_by_nix() -> Vec<Sent<'static>> {
    let lines = include_str!("sent_by_nix.txt").lines().filter(|line| !line.starts_with('#'));
    let read = |line: &'static str| {
        let fields: Vec<&str> = line.split(" | ").map(str::trim).collect();
        let [versions, _, line] = fields[..] else { panic!("{line}") };
        let words: Vec<&str> = versions.split_whitespace().collect();
        let [first, last, scheme] = words[..] else { panic!("{line}") };
        Sent { first: minor(first).unwrap(), last: minor(last), scheme, line }
    };
    lines.map(read).collect()
}

#[test]
fn what_each_version_of_nix_sends_is_read() {
    // Stores that a shell, which there isn't, would take apart; quoted or not, they come out the same.
    for store in ["/home/bob/store", "/home/bob/a store", "local?root=/x&y=1;z", "daemon", "it's", "/a --process-opsx"]
    {
        let sent = sent_by_nix();
        for Sent { scheme, line, first, .. } in &sent {
            let is_quoted = line.contains("'STORE'");
            let put = if is_quoted { store.replace('\'', r"'\''") } else { store.to_owned() };
            let line = line.replace("STORE", &put);
            let named = line.contains("--store").then(|| store.to_owned());
            let wanted = match *scheme {
                "ssh" => NixCommand::Serve { store: named },
                "ssh-ng" => NixCommand::Daemon { store: named, process_ops: false },
                "mounted-ssh-ng" => NixCommand::Daemon { store: named, process_ops: true },
                other => panic!("{other}"),
            };
            assert_eq!(parse_command(line.as_bytes(), Some(store)), Ok(wanted), "2.{first}: {line}");
        }
    }
}

#[test]
fn the_table_has_every_version_once() {
    let sent = sent_by_nix();
    for (scheme, since, forms) in [("ssh-ng", 8, 4), ("ssh", 8, 2), ("mounted-ssh-ng", 20, 2)] {
        for version in since..=40 {
            let is_of = |sent: &&Sent<'_>| {
                sent.scheme == scheme && sent.first <= version && sent.last.is_none_or(|last| version <= last)
            };
            assert_eq!(sent.iter().filter(is_of).count(), forms, "{scheme} of 2.{version}");
        }
    }
    // And no line of it is one that nobody sends: without its last word each is refused, or another line of the table.
    for Sent { line, .. } in &sent {
        let shorter = line.rsplit_once(' ').unwrap().0;
        let is_sent = sent.iter().any(|other| other.line == shorter);
        assert_eq!(parse_command(shorter.as_bytes(), Some("STORE")).is_ok(), is_sent, "{shorter}");
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
