use std::os::unix::fs::PermissionsExt as _;

use super::*;

const SERVER: &str = "https://control.example";

fn open(path: &std::path::Path, server: &str) -> Result<KeptIdentity, StateError> {
    StateFolder::open(path)?.identity(server, &mut rand::rng())
}

#[test]
fn an_identity_is_kept_from_before_control_hears_of_it() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("state");
    let first = open(&path, SERVER).unwrap();
    let (machine, node) = (first.machine_key(), first.node_key());
    assert_eq!(first.entry(), Entry::New);
    assert!(!path.join(FILE).exists(), "what was never used needn't be kept");
    first.handle_sent().unwrap();
    let mode = std::fs::metadata(path.join(FILE)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    assert!(!format!("{first:?}").contains(&*node.expose_hex()));

    // A process that died here, and the next.
    drop(first);
    let second = open(&path, &format!("{SERVER}/")).unwrap();
    assert_eq!((second.machine_key(), second.node_key(), second.entry()), (machine, node.clone(), Entry::Unanswered));
    second.handle_registered().unwrap();
    second.handle_sent().unwrap();
    drop(second);
    let third = open(&path, SERVER).unwrap();
    assert_eq!((third.node_key(), third.entry(), third.old_node_key()), (node.clone(), Entry::Known, None));

    // The key ends, and the process dies before control has agreed to the next one.
    let next = NodePrivate::generate(&mut rand::rng());
    third.handle_new_node_key(&next).unwrap();
    drop(third);
    let fourth = open(&path, SERVER).unwrap();
    assert_eq!((fourth.node_key(), fourth.old_node_key()), (next, Some(node.public())));
    fourth.handle_registered().unwrap();
    assert_eq!(fourth.old_node_key(), None);
    let names: Vec<_> = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "nothing half-written stays: {names:?}");
    fourth.handle_logged_out().unwrap();
    assert!(!path.join(FILE).exists());
    fourth.handle_logged_out().unwrap();
}

#[test]
fn one_agent_at_a_time_has_it() {
    let parent = tempfile::tempdir().unwrap();
    let first = open(&parent.path().join("state"), SERVER).unwrap();
    let clone = first.clone();
    let error = open(&parent.path().join("state"), SERVER).unwrap_err();
    assert!(matches!(error, StateError::InUse(_)) && error.to_string().contains("--state-dir"), "{error}");
    drop(first);
    assert!(open(&parent.path().join("state"), SERVER).is_err(), "a handle of it is still there");
    drop(clone);
    assert!(open(&parent.path().join("state"), SERVER).is_ok());
}

#[test]
fn half_written_and_foreign_files_are_errors_and_stay_as_they_are() {
    let parent = tempfile::tempdir().unwrap();
    let kept = open(&parent.path().join("state"), SERVER).unwrap();
    kept.handle_registered().unwrap();
    drop(kept);
    let file = parent.path().join("state").join(FILE);
    let whole = std::fs::read_to_string(&file).unwrap();
    let secret = whole.split("privkey:").nth(1).unwrap()[..64].to_owned();

    let cuts = (0..whole.trim_end().len()).step_by(7).map(|len| whole[..len].to_owned());
    let foreign = [
        "hello".to_owned(),
        "{}".to_owned(),
        "[1]".to_owned(),
        r#"{"schema": 1}"#.to_owned(),
        // tailscaled's state.
        r#"{"_machinekey": "cHJpdmtleTo=", "_current-profile": "cHJvZmlsZQ=="}"#.to_owned(),
        whole.replace("\"schema\": 1", "\"schema\": 2"),
        whole.replace("\"known\"", "\"unknown\""),
        whole.replace(&secret, &secret[..63]),
        whole.replace("privkey:", "nodekey:"),
    ];
    for content in cuts.chain(foreign) {
        std::fs::write(&file, &content).unwrap();
        let error = open(&parent.path().join("state"), SERVER).unwrap_err();
        assert!(matches!(error, StateError::Identity { .. }), "{error}: {content}");
        let words = format!("{error} {error:?}");
        assert!(words.contains("restore it, or remove it") && !words.contains(&secret[..60]), "{words}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), content, "left alone");
    }
    std::fs::write(&file, &whole).unwrap();
    assert!(open(&parent.path().join("state"), SERVER).is_ok());
    let error = open(&parent.path().join("state"), "https://other.example").unwrap_err();
    assert!(matches!(error, StateError::OtherServer { .. }), "{error}");
    assert!(error.to_string().contains("control.example") && error.to_string().contains("other.example"), "{error}");
}
