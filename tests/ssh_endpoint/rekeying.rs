//! Keys are exchanged anew in the middle of transfers, by either side, and not a byte is lost.

use std::io::{Read as _, Write as _};
use std::process::Stdio;
use std::time::Duration;

use nixtail::ssh::Limits;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncReadExt as _;

use crate::server::{DAEMON, PATIENCE, allow, commands, serve_within, shell, within};

const MIB: u64 = 1 << 20;

/// Bytes that repeat only after 251 chunks.
fn write_input(path: &std::path::Path, bytes: u64) -> String {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path).unwrap());
    let mut hash = Sha256::new();
    for number in 0..bytes / 65536 {
        let chunk: Vec<u8> = (0..65536_u64).map(|at| ((at + number) % 251) as u8).collect();
        hash.update(&chunk);
        file.write_all(&chunk).unwrap();
    }
    file.into_inner().unwrap().sync_data().unwrap();
    format!("{:x}", hash.finalize())
}

/// Sends `bytes` to a child that sends them back, with these options of OpenSSH, and looks at what comes. Returns how
/// often OpenSSH says that it has new keys.
async fn there_and_back(bytes: u64, rekey_after: usize, options: &[&str]) -> usize {
    let limits = Limits { rekey_after, ..Limits::default() };
    let server = serve_within(allow(|_| {}), commands(shell("cat")), limits).await;
    let input = server.folder.path().join("input");
    let wanted = write_input(&input, bytes);
    let mut ssh = server.ssh(&[&["-v", "-c", "aes128-gcm@openssh.com"], options].concat(), DAEMON);
    let log = server.folder.path().join("log");
    ssh.stdin(std::fs::File::open(&input).unwrap()).stderr(Stdio::from(std::fs::File::create(&log).unwrap()));
    let mut client = ssh.spawn().unwrap();
    let mut output = client.stdout.take().unwrap();
    let reading = async {
        let (mut hash, mut buffer, mut length) = (Sha256::new(), vec![0; 1 << 16], 0);
        loop {
            match output.read(&mut buffer).await.unwrap() {
                0 => return (format!("{:x}", hash.finalize()), length),
                read => {
                    hash.update(&buffer[..read]);
                    length += read as u64;
                }
            }
        }
    };
    let patience = PATIENCE + Duration::from_secs(bytes / (4 * MIB));
    let (hash, length) = within(patience, reading).await;
    assert!(within(PATIENCE, client.wait()).await.unwrap().success());
    assert_eq!((length, hash), (bytes, wanted));
    let mut told = String::new();
    std::fs::File::open(&log).unwrap().read_to_string(&mut told).unwrap();
    told.matches("SSH2_MSG_NEWKEYS received").count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openssh_rekeys_while_64_mib_go_both_ways() {
    let exchanges = there_and_back(64 * MIB, 1 << 30, &["-o", "RekeyLimit=2M"]).await;
    assert!(exchanges > 10, "{exchanges}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_endpoint_rekeys_while_64_mib_go_both_ways() {
    let exchanges = there_and_back(64 * MIB, 4 << 20, &[]).await;
    assert!(exchanges > 4, "{exchanges}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make test-long: 2 GiB both ways"]
async fn both_rekey_while_2_gib_go_both_ways() {
    let exchanges = there_and_back(2048 * MIB, 1 << 30, &["-o", "RekeyLimit=256M"]).await;
    assert!(exchanges > 8, "{exchanges}");
}
