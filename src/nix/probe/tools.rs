//! The program of a probe build: this machine's `/bin/sh` with its loader and libraries, as one archive for the store.
//!
//! A sandbox has no program of its own (Debian's Nix 2.8 has not even `/bin/sh` there), a built-in of Nix can't look at
//! anything, and nobody has promised a static busybox. A shell that is started through its own loader, which is told where
//! the libraries are, runs wherever the store is; glibc's and musl's loaders both do that.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use tokio::io::AsyncReadExt as _;

use super::worker::Message;
use crate::nix::spawn::{ChildSpec, GroupChild};

/// The most that is put into the store: a shell, a loader and a C library have about 2 MiB.
const MAX_BYTES: u64 = 64 * 1024 * 1024;
/// The most that a loader says of a program.
const MAX_LIST: u64 = 64 * 1024;

/// A shell that can be put into a store.
#[derive(Debug)]
pub(super) struct Shell {
    /// The archive (a NAR) of a folder.
    pub(super) archive: Vec<u8>,
    /// How it is started.
    start: Start,
}

/// How a shell is started.
#[derive(Debug)]
enum Start {
    /// As `sh` of the archive.
    Static,
    /// Through the loader of this name in the archive.
    Loader(String),
    /// As `/bin/sh` of the machine. macOS has no loader that starts a copy, and its sandbox lets this one through.
    System,
}

impl Shell {
    /// Collects this machine's.
    pub(super) async fn collect() -> io::Result<Self> {
        if !cfg!(target_os = "linux") {
            return Self::of_system();
        }
        let shell = std::fs::canonicalize("/bin/sh")?;
        let mut files = vec![("sh".to_owned(), shell.clone())];
        let start = match loader_of(&shell)? {
            None => Start::Static,
            Some(loader) => {
                let said = said_by(&loader, &shell).await?;
                files.extend(libraries(&said));
                let name = loader.file_name().map(|name| name.to_string_lossy().into_owned());
                let name = name.ok_or_else(|| io::Error::other("its loader has no name"))?;
                files.push((name.clone(), loader));
                Start::Loader(name)
            }
        };
        // In the archive's order, each once.
        files.sort();
        files.dedup_by(|one, other| one.0 == other.0);
        Ok(Self { archive: archive(&files)?, start })
    }

    /// No copy at all: an empty folder for an archive.
    fn of_system() -> io::Result<Self> {
        Ok(Self { archive: archive(&[])?, start: Start::System })
    }

    /// Builder and arguments that run `script`, when the archive is at `path`.
    pub(super) fn command(&self, path: &str, script: &str) -> (String, Vec<String>) {
        let shell = format!("{path}/sh");
        let words = ["-c".to_owned(), script.to_owned()];
        match &self.start {
            Start::Static => (shell, words.to_vec()),
            Start::System => ("/bin/sh".to_owned(), words.to_vec()),
            Start::Loader(loader) => {
                let start = ["--library-path".to_owned(), path.to_owned(), shell];
                (format!("{path}/{loader}"), start.into_iter().chain(words).collect())
            }
        }
    }
}

/// The loader that an ELF file names (`PT_INTERP`, elf(5)), of 64 bits and little-endian.
fn loader_of(program: &Path) -> io::Result<Option<PathBuf>> {
    let bytes = bounded(program)?;
    let field = |at: usize, length: usize| {
        let bytes = bytes.get(at..at.checked_add(length)?)?;
        Some(bytes.iter().rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte)))
    };
    let refused = || io::Error::other(format!("{} is no 64-bit little-endian ELF program", program.display()));
    if bytes.get(..6) != Some(b"\x7fELF\x02\x01") {
        return Err(refused());
    }
    let read = || {
        let headers = usize::try_from(field(32, 8)?).ok()?;
        let (size, count) = (field(54, 2)? as usize, field(56, 2)? as usize);
        let find = |index: usize| {
            let header = headers.checked_add(index.checked_mul(size)?)?;
            const PT_INTERP: u64 = 3;
            (field(header, 4)? == PT_INTERP).then_some(())?;
            let at = usize::try_from(field(header.checked_add(8)?, 8)?).ok()?;
            let length = usize::try_from(field(header.checked_add(32)?, 8)?).ok()?;
            bytes.get(at..at.checked_add(length)?)
        };
        Some((0..count).find_map(find))
    };
    let name = read().ok_or_else(refused)?;
    let text = name.map(|name| String::from_utf8_lossy(name).trim_end_matches('\0').to_owned());
    text.map(|text| Some(PathBuf::from(text)).filter(|path| path.is_absolute()).ok_or_else(refused)).transpose()
}

/// `LOADER --list PROGRAM`, which is what ldd(1) runs.
async fn said_by(loader: &Path, program: &Path) -> io::Result<String> {
    let arguments = ["--list".into(), program.as_os_str().to_owned()];
    let mut child = GroupChild::start(&ChildSpec::new(loader, arguments)).await.map_err(io::Error::other)?;
    let mut said = Vec::new();
    if let Some((_, stdout, _)) = child.take_pipes() {
        stdout.take(MAX_LIST).read_to_end(&mut said).await?;
    }
    child.wait().await?;
    Ok(String::from_utf8_lossy(&said).into_owned())
}

/// The lines `NAME => PATH (ADDRESS)`.
fn libraries(said: &str) -> Vec<(String, PathBuf)> {
    let library = |line: &str| {
        let (name, found) = line.trim().split_once(" => ")?;
        let path = Path::new(found.split(" (0x").next()?.trim());
        let is_name = !name.contains('/') && !name.is_empty() && name != "." && name != "..";
        (is_name && path.is_absolute()).then(|| (name.to_owned(), path.to_owned()))
    };
    said.lines().filter_map(library).collect()
}

/// The NAR of a folder of programs; the format is that of the thesis "The Purely Functional Software Deployment Model".
fn archive(files: &[(String, PathBuf)]) -> io::Result<Vec<u8>> {
    let mut archive = Message::default();
    archive.string("nix-archive-1").string("(").string("type").string("directory");
    for (name, path) in files {
        archive.string("entry").string("(").string("name").string(name).string("node");
        archive.string("(").string("type").string("regular").string("executable").string("").string("contents");
        archive.bytes(&bounded(path)?).string(")").string(")");
    }
    archive.string(")");
    Ok(archive.0)
}

fn bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if read as u64 > MAX_BYTES {
        return Err(io::Error::other(format!("{} has more than {MAX_BYTES} bytes", path.display())));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_of_both_loaders_are_read() {
        let glibc = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
             \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(libraries(glibc), [("libc.so.6".into(), "/lib/x86_64-linux-gnu/libc.so.6".into())]);
        let musl = "\t/lib/ld-musl-x86_64.so.1 (0x7f)\n\tlibc.musl-x86_64.so.1 => /lib/ld-musl-x86_64.so.1 (0x7f)\n";
        assert_eq!(libraries(musl), [("libc.musl-x86_64.so.1".into(), "/lib/ld-musl-x86_64.so.1".into())]);
        assert_eq!(libraries("libgone.so => not found\n ../x => /y (0x1)\n"), []);
    }

    #[tokio::test]
    async fn the_shell_runs_from_a_folder_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let shell = Shell::collect().await.unwrap();
        // Unpacked by the same walk that Nix does, as far as it is needed here: name, then contents.
        let text = |at: usize| {
            let length = u64::from_le_bytes(shell.archive[at..at + 8].try_into().unwrap()) as usize;
            (&shell.archive[at + 8..at + 8 + length], at + 8 + length.next_multiple_of(8))
        };
        let (mut at, mut name) = (0, String::new());
        while at < shell.archive.len() {
            let (word, next) = text(at);
            let (value, after) = if matches!(word, b"name" | b"contents") { text(next) } else { (word, next) };
            if word == b"name" {
                name = String::from_utf8(value.to_vec()).unwrap();
            } else if word == b"contents" {
                std::fs::write(folder.path().join(&name), value).unwrap();
                let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
                std::fs::set_permissions(folder.path().join(&name), mode).unwrap();
            }
            at = after;
        }
        let (program, arguments) = shell.command(folder.path().to_str().unwrap(), "echo $((6 * 7))");
        let output = std::process::Command::new(program).args(arguments).env_clear().output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "42\n", "{output:?}");
    }

    #[test]
    fn a_shell_that_is_not_copied_is_the_machines_own() {
        let (program, arguments) = Shell::of_system().unwrap().command("/nowhere", "echo $((6 * 7))");
        let output = std::process::Command::new(program).args(arguments).env_clear().output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "42\n", "{output:?}");
    }

    #[test]
    fn what_is_no_program_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        for bytes in [&b""[..], b"#!/bin/sh\n", b"\x7fELF\x02\x01", &[b"\x7fELF\x02\x01", &[0xff; 90][..]].concat()] {
            std::fs::write(&file, bytes).unwrap();
            assert!(!matches!(loader_of(&file), Ok(Some(_))), "{bytes:?}");
        }
    }
}
