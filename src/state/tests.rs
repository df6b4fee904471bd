use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

fn folder() -> (tempfile::TempDir, PathBuf) {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("state/of/builder");
    (parent, path)
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn key(path: &Path) -> Result<String, StateError> {
    let key = StateFolder::open(path)?.host_key(&mut rand::rng())?;
    Ok(key.public_line().to_owned())
}

#[test]
fn a_host_key_is_made_once_and_kept_for_its_owner_alone() {
    let (_parent, path) = folder();
    let first = key(&path).unwrap();
    assert_eq!(key(&path).unwrap(), first);
    let file = path.join(HOST_KEY);
    assert_eq!((mode(&path), mode(&file)), (0o700, 0o600));
    let names: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, [HOST_KEY], "nothing half-written stays");
    // A folder that somebody has made, with a key that OpenSSH has made, does as well.
    fs::remove_file(&file).unwrap();
    let made = std::process::Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "by hand", "-f"])
        .arg(&file)
        .status()
        .unwrap();
    assert!(made.success());
    let theirs = fs::read_to_string(path.join("ssh_host_ed25519_key.pub")).unwrap();
    assert!(theirs.starts_with(&key(&path).unwrap()), "{theirs}");
    // And the other way round: it reads ours.
    fs::remove_file(&file).unwrap();
    let ours = key(&path).unwrap();
    let shown = std::process::Command::new("ssh-keygen").arg("-y").arg("-f").arg(&file).output().unwrap();
    assert_eq!(String::from_utf8(shown.stdout).unwrap().trim_end(), ours);
}

#[test]
fn what_cannot_be_read_is_an_error_and_stays_as_it_is() {
    let (_parent, path) = folder();
    key(&path).unwrap();
    let file = path.join(HOST_KEY);
    let whole = fs::read(&file).unwrap();
    let rsa = tempfile::tempdir().unwrap();
    let made = std::process::Command::new("ssh-keygen")
        .args(["-q", "-t", "ecdsa", "-N", "", "-f"])
        .arg(rsa.path().join("key"))
        .status()
        .unwrap();
    assert!(made.success());
    let other_kind = fs::read(rsa.path().join("key")).unwrap();
    for content in [&b""[..], &whole[..whole.len() / 2], b"hello\n", &[0xff; 300], &other_kind] {
        fs::write(&file, content).unwrap();
        let error = key(&path).unwrap_err();
        assert!(matches!(error, StateError::HostKey { .. }), "{error}");
        assert!(error.to_string().contains("remove it to get a new key"), "{error}");
        assert_eq!(fs::read(&file).unwrap(), content, "left alone");
    }
    fs::write(&file, vec![b'x'; 70_000]).unwrap();
    assert!(matches!(key(&path), Err(StateError::File { .. })));
    fs::write(&file, &whole).unwrap();
    assert!(key(&path).is_ok());
}

#[test]
fn what_others_can_reach_is_refused() {
    let (parent, path) = folder();
    key(&path).unwrap();
    let file = path.join(HOST_KEY);
    set_mode(&file, 0o640);
    let error = key(&path).unwrap_err().to_string();
    assert!(error.contains("mode 640") && error.contains("chmod 600"), "{error}");
    set_mode(&file, 0o600);
    set_mode(&path, 0o750);
    assert!(matches!(key(&path), Err(StateError::Open { wanted: 0o700, .. })));
    set_mode(&path, 0o700);

    // Nothing is followed, and nothing but a folder is one.
    let link = parent.path().join("link");
    symlink(&path, &link).unwrap();
    assert!(matches!(key(&link), Err(StateError::NotAFolder(_))));
    assert!(matches!(key(&file), Err(StateError::NotAFolder(_))));
    assert!(matches!(key(&file.join("below")), Err(StateError::NotAFolder(_))));
    let elsewhere = parent.path().join("elsewhere");
    fs::rename(&file, &elsewhere).unwrap();
    symlink(&elsewhere, &file).unwrap();
    assert!(matches!(key(&path), Err(StateError::File { .. })));
}

#[test]
fn two_that_start_at_once_have_one_key() {
    let (_parent, path) = folder();
    let start = std::sync::Barrier::new(8);
    let keys: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    key(&path).unwrap()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
}
