//! How the waiting goes, for people: each change at a terminal, now and then where nobody looks.

use std::io::IsTerminal as _;
use std::time::Duration;

use tokio::sync::watch;

/// How often a line comes where there is no terminal: often enough that no CI calls the job silent.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// Changes that come together are one at a terminal.
const TOGETHER: Duration = Duration::from_millis(250);

/// Tells the lines of `progress` as they come, for ever. Cancel safe.
pub(super) async fn tell(mut progress: watch::Receiver<String>) {
    let pause = if std::io::stderr().is_terminal() { TOGETHER } else { HEARTBEAT };
    let mut told = String::new();
    loop {
        tokio::time::sleep(pause).await;
        let line = progress.borrow_and_update().clone();
        // A heartbeat comes even where nothing has changed.
        if !line.is_empty() && (pause == HEARTBEAT || line != told) {
            super::say(&format_args!("waiting: {line}"));
            told = line;
        }
        if pause == TOGETHER && progress.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
