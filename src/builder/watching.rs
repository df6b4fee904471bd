//! The watch: a builder's reports to its claimer, for as long as the claimer wants them or the builder lives.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _};
use nixtail_proto::key::NodePublic;
use nixtail_proto::run::REPORT_INTERVAL;
use tokio::sync::watch;

use super::verbs::Verbs;

/// What happens within so short a time goes into one report: a build's end and the next one's begin, mostly.
const TOGETHER: Duration = Duration::from_millis(50);

/// One open watch. Its end is told to the builder's life, however it comes.
struct Watch {
    verbs: Arc<Verbs>,
    claimer: NodePublic,
    changes: watch::Receiver<u64>,
    /// The last event that was told of.
    after: u64,
    next: Next,
}

enum Next {
    /// A report is due now.
    Now,
    /// One is due when something happens, or in a while.
    Later,
    /// The last one was sent.
    Never,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.verbs.handle_watch_ended(self.claimer);
    }
}

/// Reports for `claimer`, whose watch has begun, on what happened after event `after`. They end with the builder.
pub(super) fn reports(verbs: Arc<Verbs>, claimer: NodePublic, after: u64) -> BoxStream<'static, Bytes> {
    let changes = verbs.sessions().changes();
    let watch = Watch { verbs, claimer, changes, after, next: Next::Now };
    stream::unfold(watch, |mut watch| async move {
        let line = watch.report().await?;
        Some((line, watch))
    })
    .boxed()
}

impl Watch {
    async fn report(&mut self) -> Option<Bytes> {
        match self.next {
            Next::Now => {}
            Next::Later => {
                // The sender lives as long as the sessions, and these as long as the verbs.
                if let Ok(Ok(())) = tokio::time::timeout(REPORT_INTERVAL, self.changes.changed()).await {
                    tokio::time::sleep(TOGETHER).await;
                }
            }
            Next::Never => return None,
        }
        self.changes.mark_unchanged();
        let over = self.verbs.is_over();
        let report = self.verbs.report(self.after);
        if let Some(last) = report.events.last() {
            self.after = last.number;
        }
        self.next = match (report.is_full(), over) {
            (true, _) => Next::Now,
            (false, false) => Next::Later,
            (false, true) => Next::Never,
        };
        Some(report.line().into())
    }
}
