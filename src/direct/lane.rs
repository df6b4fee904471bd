//! The coordinator's lane: a socket in the run's folder, and beside it one link to nixtail for each builder, which Nix starts.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nixtail_proto::direct::{self, RefusalKind, Request};
use nixtail_proto::key::NodePublic;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::call::{NixEnds, Verdict, join};
use super::handover::{self, Handover};
use crate::agent::Agent;
use crate::builder::SSH_PORT;
use crate::report::plain;

/// The folder of the links in a run's folder.
pub(crate) const LANE_FOLDER: &str = "builders";

/// The socket's name in it. No builder's link has it: host names don't begin with a dot.
pub const LANE_SOCKET: &str = ".lane";

/// The longest path of a socket, in bytes (`sockaddr_un`, without its NUL).
const MAX_SOCKET_PATH: usize = 107;

/// Sessions at once: each is a build of this machine's Nix, or a question of it.
const MAX_SESSIONS: usize = 256;

/// How long what Nix started may take to hand over its descriptors, which is all that it does.
const HANDOVER_DEADLINE: Duration = Duration::from_secs(10);

/// How long a dial may take. The SYN is repeated meanwhile; Nix stands still with all its other builds.
const DIAL_DEADLINE: Duration = Duration::from_secs(10);

/// How long what Nix started may take to print its last words, before Nix sees the end of the stream.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The exit code where a builder or its connection isn't there, as of nixtail's commands.
const UNAVAILABLE: u32 = 69;

/// Is told of each session that failed for a reason which isn't Nix's own: the builder's name, and in one line what went wrong
/// and what to do. A daemon's Nix shows that nobody but its own log.
pub type OnTrouble = Box<dyn Fn(&str, &str) + Send + Sync>;

/// Why there is no lane.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaneError {
    /// Nix before 2.20 and Lix pass the path through a shell, and all put it into a URI.
    #[error("{} has characters that a shell or a URI would change; only letters, digits and ./_- pass (--run-dir names another folder)", .0.display())]
    Mangled(PathBuf),
    /// It doesn't fit into a socket's address.
    #[error("{} is longer than the {MAX_SOCKET_PATH} bytes of a socket's address (--run-dir names a shorter folder)", .0.display())]
    TooLong(PathBuf),
    /// The system said no.
    #[error("can't {doing} {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The lane of one run. [`Lane::stop`] ends it; dropping it removes its files and leaves sessions to the runtime's end.
pub struct Lane {
    shared: Arc<Shared>,
    folder: PathBuf,
    program: PathBuf,
    cancel: CancellationToken,
    tasks: TaskTracker,
}

struct Shared {
    agent: Agent,
    login: String,
    ways: Mutex<BTreeMap<String, Way>>,
    on_trouble: OnTrouble,
}

/// The way to one builder.
#[derive(Debug, Clone)]
struct Way {
    /// The node that was met under this name, or why nobody is to be reached.
    open: Result<NodePublic, String>,
    /// Sessions that the builder let in.
    accepted: u64,
}

/// The URI by which Nix reaches `builder` through the lane in `run`.
///
/// # Errors
/// [`LaneError::Mangled`] where the path wouldn't come through.
pub fn store_uri(run: &Path, builder: &str) -> Result<String, LaneError> {
    link_uri(&run.join(LANE_FOLDER), builder)
}

/// The URI by which Nix starts the link called `builder` in `folder` instead of ssh.
pub(super) fn link_uri(folder: &Path, builder: &str) -> Result<String, LaneError> {
    let program = folder.join(builder);
    let passes = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    match program.to_str().filter(|path| path.chars().all(passes)) {
        Some(path) if !builder.starts_with(['.', '-']) && !builder.is_empty() && !builder.contains('/') => {
            Ok(format!("ssh-ng://localhost?remote-program={path}"))
        }
        _ => Err(LaneError::Mangled(program)),
    }
}

impl Lane {
    /// Serves a lane in the run's folder `run`, which only this user and root can use. `program` is nixtail; `login` the user at the
    /// builders.
    ///
    /// # Errors
    /// When that can't be there.
    pub fn start(
        agent: &Agent,
        run: &Path,
        program: &Path,
        login: &str,
        on_trouble: OnTrouble,
    ) -> Result<Self, LaneError> {
        // What holds for one builder's path holds for the folder's.
        store_uri(run, "b")?;
        let folder = run.join(LANE_FOLDER);
        let socket = folder.join(LANE_SOCKET);
        if socket.as_os_str().len() > MAX_SOCKET_PATH {
            return Err(LaneError::TooLong(socket));
        }
        let io = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| LaneError::Io { doing, path, source }
        };
        make_folder(&folder)?;
        let listener = UnixListener::bind(&socket).map_err(io("bind", &socket))?;
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o600)).map_err(io("protect", &socket))?;
        let shared =
            Arc::new(Shared { agent: agent.clone(), login: login.to_owned(), ways: Mutex::default(), on_trouble });
        let (cancel, tasks) = (CancellationToken::new(), TaskTracker::new());
        let accepting = accept(listener, Arc::clone(&shared), tasks.clone(), cancel.clone());
        tasks.spawn(cancel.clone().run_until_cancelled_owned(accepting));
        Ok(Self { shared, folder, program: program.to_owned(), cancel, tasks })
    }

    /// Lets Nix reach `builder`, which was met under `node`.
    ///
    /// # Errors
    /// When its link can't be made.
    pub fn open(&self, builder: &str, node: NodePublic) -> Result<(), LaneError> {
        make_link(&self.program, &self.folder.join(builder))?;
        let mut ways = lock(&self.shared.ways);
        let way = ways.entry(builder.to_owned()).or_insert(Way { open: Ok(node), accepted: 0 });
        way.open = Ok(node);
        Ok(())
    }

    /// Refuses all further sessions to `builder` at once, in these words: the first ones count. Those that run go on as long
    /// as they do; one that breaks off then is told the same words.
    pub fn close(&self, builder: &str, why: &str) {
        if let Some(way) = lock(&self.shared.ways).get_mut(builder)
            && way.open.is_ok()
        {
            way.open = Err(why.to_owned());
        }
    }

    /// How many sessions `builder` has let in so far.
    #[must_use]
    pub fn accepted(&self, builder: &str) -> u64 {
        lock(&self.shared.ways).get(builder).map_or(0, |way| way.accepted)
    }

    /// Ends all sessions and removes the files.
    pub async fn stop(&self) {
        self.cancel.cancel();
        self.tasks.close();
        // Each ends within its last words' time.
        self.tasks.wait().await;
        remove(&self.folder);
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.cancel.cancel();
        remove(&self.folder);
    }
}

/// Makes a link to `program`, unless there is one.
pub(super) fn make_link(program: &Path, link: &Path) -> Result<(), LaneError> {
    match std::os::unix::fs::symlink(program, link) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            Err(LaneError::Io { doing: "make", path: link.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Makes the folder anew: what stood there is of a run that was killed.
pub(super) fn make_folder(folder: &Path) -> Result<(), LaneError> {
    remove(folder);
    let made = fs::DirBuilder::new().mode(0o700).create(folder);
    made.map_err(|source| LaneError::Io { doing: "make", path: folder.to_owned(), source })
}

/// Removes the folder's links and socket, and the folder; nothing that isn't ours.
pub(super) fn remove(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| !kind.is_dir() && !kind.is_file()) {
            // What stays keeps the folder, whose removal fails then; the next start tells.
            let _ = fs::remove_file(entry.path());
        }
    }
    let _ = fs::remove_dir(folder);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while one of these is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: UnixListener, shared: Arc<Shared>, tasks: TaskTracker, cancel: CancellationToken) {
    let slots = Arc::new(Semaphore::new(MAX_SESSIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((program, _)) if is_allowed(&program) => {
                let (shared, cancel) = (Arc::clone(&shared), cancel.clone());
                tasks.spawn(async move {
                    shared.serve(program, &cancel).await;
                    drop(slot);
                });
            }
            Ok(_) => tracing::warn!("a process of another user tried the lane's socket"),
            Err(error) => {
                // Out of descriptors, say. Others end, and then it goes on.
                tracing::warn!(%error, "the lane's socket can't accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn is_allowed(program: &UnixStream) -> bool {
    let own = rustix::process::getuid().as_raw();
    program.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

impl Shared {
    /// One session of Nix's, from the hand-over to the last word.
    async fn serve(&self, mut program: UnixStream, cancel: &CancellationToken) {
        let Handover { builder, stdin, stdout } =
            match tokio::time::timeout(HANDOVER_DEADLINE, handover::receive(&program)).await {
                Ok(Ok(handover)) => handover,
                Ok(Err(error)) => return tracing::debug!(%error, "what called at the lane handed nothing over"),
                Err(_) => return tracing::debug!("what called at the lane handed nothing over in time"),
            };
        // The agent's frames to the program: it has taken over, stderr, the last word.
        if program.write_all(&direct::accepted()).await.is_err() {
            return;
        }
        // Nix's end of the stream is held until the program has told why it ends: Nix shows that first, then.
        let mut ends = match NixEnds::new(stdin, stdout) {
            Ok(ends) => ends,
            Err(error) => {
                return dismiss(&mut program, RefusalKind::Protocol.exit_code().into(), &error.to_string()).await;
            }
        };
        let verdict = tokio::select! {
            verdict = self.session(&builder, &mut ends, &mut program) => verdict,
            () = cancel.cancelled() => Verdict::Broken("the coordinator is ending".to_owned()),
        };
        tracing::debug!(%builder, ?verdict, "a session of the direct lane ended");
        let (code, words) = match verdict {
            Verdict::NixGone => return,
            Verdict::Ended(code, words) if words.is_empty() && code != 0 => {
                (code, format!("its Nix daemon ended with exit code {code}"))
            }
            Verdict::Ended(code, words) => (code, words),
            Verdict::Refused(kind, words) => (kind.exit_code().into(), words),
            Verdict::Broken(words) => (UNAVAILABLE, words),
        };
        if code != 0 {
            self.trouble(&builder, &words);
        }
        dismiss(&mut program, code, &words).await;
    }

    async fn session(&self, builder: &str, ends: &mut NixEnds, program: &mut UnixStream) -> Verdict {
        let node = match self.way(builder) {
            Ok(node) => node,
            Err(words) => return Verdict::Refused(RefusalKind::Busy, words),
        };
        let request = match Request::new(&self.login, "nix-daemon --stdio") {
            Ok(request) => request,
            Err(error) => return Verdict::Refused(RefusalKind::Protocol, error.to_string()),
        };
        let unreached =
            |why: &dyn fmt::Display| Verdict::Broken(format!("{why}; Nix tries another builder, if it has one"));
        let mut stream = match tokio::time::timeout(DIAL_DEADLINE, self.agent.dial(builder, SSH_PORT)).await {
            Ok(Ok(stream)) if stream.peer() == node => stream,
            Ok(Ok(_)) => return unreached(&"another node has its name now, which must be proved first"),
            Ok(Err(error)) => return unreached(&error),
            Err(_) => return unreached(&format_args!("it doesn't answer within {} s", DIAL_DEADLINE.as_secs())),
        };
        let accepted = AtomicBool::new(false);
        let on_accepted = || {
            accepted.store(true, Ordering::Relaxed);
            if let Some(way) = lock(&self.ways).get_mut(builder) {
                way.accepted += 1;
            }
        };
        match join(&mut stream, &request, ends, program, on_accepted).await {
            Verdict::NixGone => {
                // At once, so that the builder ends what runs for nobody.
                stream.abort();
                Verdict::NixGone
            }
            Verdict::Broken(why) if accepted.load(Ordering::Relaxed) => {
                // Where the coordinator knows why, that says more than a broken stream does.
                let known = lock(&self.ways).get(builder).and_then(|way| way.open.clone().err());
                let why = known.unwrap_or(why);
                Verdict::Broken(format!("{why}; what it was building is lost, run the command again"))
            }
            Verdict::Broken(why) => unreached(&why),
            verdict => verdict,
        }
    }

    /// The node behind a builder's name, without asking anybody: a builder that is gone is refused in no time.
    fn way(&self, builder: &str) -> Result<NodePublic, String> {
        let ways = lock(&self.ways);
        let way = ways
            .get(builder)
            .ok_or_else(|| "it isn't among this run's builders; look at `nixtail status`".to_owned())?;
        way.open.clone().map_err(|why| format!("{why}; the build goes to another builder, or waits until it is back"))
    }

    fn trouble(&self, builder: &str, words: &str) {
        let words = plain(words);
        tracing::warn!(builder = %plain(builder), %words, "a session of the direct lane failed");
        (self.on_trouble)(&plain(builder), &words);
    }
}

/// Says the last word and waits a moment until it is printed.
async fn dismiss(program: &mut UnixStream, code: u32, words: &str) {
    let telling = async {
        program.write_all(&direct::ended(code, words)).await?;
        let mut rest = [0];
        program.read(&mut rest).await
    };
    // One that doesn't listen any more has nothing to be told.
    let _ = tokio::time::timeout(LAST_WORDS, telling).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_builders_uri_is_its_links_path() {
        let uri = store_uri(Path::new("/run/user/1000/nixtail.run"), "b-1.example").unwrap();
        assert_eq!(uri, "ssh-ng://localhost?remote-program=/run/user/1000/nixtail.run/builders/b-1.example");
        for (run, builder) in [
            ("/a b", "b"),
            ("/a&b", "b"),
            ("/a$b", "b"),
            ("/a;b", "b"),
            ("/ä", "b"),
            ("/a", "b'"),
            ("/a", ".lane"),
            ("/a", "../b"),
            ("/a", "-b"),
            ("/a", ""),
            ("/a", "fd7a::1"),
        ] {
            assert!(matches!(store_uri(Path::new(run), builder), Err(LaneError::Mangled(_))), "{run} {builder}");
        }
    }
}
