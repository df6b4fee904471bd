//! `nixtail status --watch`: the same, again and again, until the agent ends or Ctrl-C.

use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use super::changes::{Changes, stamped};
use super::{Args, DEADLINE, Seen, fetch};
use crate::cli::coordinator::EndedAfter;
use crate::coordinator::EndedBuilds;
use crate::local::Client;
use crate::report::terminal::{Style, Terminal};
use crate::report::{Exit, Failure};

/// Nobody reads faster.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

pub(super) fn run(client: Client, args: &Args, interval: Duration) -> Result<(), Failure> {
    let runtime = crate::cli::runtime()?;
    let watched = runtime.block_on(watch(client, args, interval.max(SHORTEST_INTERVAL)));
    // A call that is under way may wait for an agent that hangs; nobody waits for it.
    runtime.shutdown_background();
    watched
}

async fn watch(client: Client, args: &Args, interval: Duration) -> Result<(), Failure> {
    let uncaught = |error| Failure::new(Exit::General, format!("signals can't be caught: {error}"));
    let mut stops = Vec::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        stops.push(signal(kind).map_err(uncaught)?);
    }
    let mut resized = signal(SignalKind::window_change()).map_err(uncaught)?;
    let mut view = View::new(args);
    let mut is_first = true;
    loop {
        let look = {
            let (client, after) = (client.clone(), view.after());
            tokio::task::spawn_blocking(move || look(&client, after))
        };
        let stopped = futures::future::select_all(stops.iter_mut().map(|stop| Box::pin(stop.recv())));
        let seen = tokio::select! {
            seen = look => seen.map_err(|error| Failure::new(Exit::General, error))?,
            _ = stopped => return Ok(()),
        };
        match seen {
            Ok(look) => view.show(look)?,
            Err(failure) if is_first => return Err(failure),
            // Who was there and isn't any more has ended; what it came to is its own business.
            Err(failure) if failure.exit == Exit::Unavailable => {
                drop(view);
                crate::cli::say(&"the agent has ended");
                return Ok(());
            }
            Err(failure) => return Err(failure),
        }
        is_first = false;
        let pause = tokio::time::sleep(interval);
        tokio::pin!(pause);
        loop {
            let stopped = futures::future::select_all(stops.iter_mut().map(|stop| Box::pin(stop.recv())));
            tokio::select! {
                () = &mut pause => break,
                _ = stopped => return Ok(()),
                _ = resized.recv() => view.resize()?,
            }
        }
    }
}

/// One look at the agent.
struct Look {
    answer: serde_json::Value,
    ended: Option<EndedBuilds>,
}

/// `after`: the last ended build that is known, where ends are asked for.
fn look(client: &Client, after: Option<u64>) -> Result<Look, Failure> {
    let answer = fetch(client)?;
    let ended = match after {
        Some(after) if answer.get("builders").is_some() => {
            Some(client.post("/ended-builds", &EndedAfter { after }, DEADLINE)?)
        }
        _ => None,
    };
    Ok(Look { answer, ended })
}

/// How what was seen is shown.
enum View {
    /// Drawn over what was drawn before.
    Screen { screen: Screen, peers: bool, last: Option<Box<Seen>> },
    /// Each change a line.
    Lines { changes: Changes, after: u64, began: Instant },
    /// Each look a line of JSON.
    Json,
}

impl View {
    fn new(args: &Args) -> Self {
        let terminal = Terminal::of(io::stdout());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
        match (args.json, terminal.width.is_some() && !dumb) {
            (true, _) => Self::Json,
            (false, true) => Self::Screen { screen: Screen { drawn: 0 }, peers: args.peers, last: None },
            (false, false) => Self::Lines { changes: Changes::default(), after: 0, began: Instant::now() },
        }
    }

    fn after(&self) -> Option<u64> {
        match self {
            Self::Lines { after, .. } => Some(*after),
            _ => None,
        }
    }

    fn show(&mut self, look: Look) -> Result<(), Failure> {
        match self {
            Self::Json => crate::cli::print(&look.answer),
            Self::Screen { screen, peers, last } => {
                let seen = last.insert(Box::new(Seen::read(look.answer)?));
                screen.draw(seen, *peers).map_err(unwritten)
            }
            Self::Lines { changes, after, began } => {
                let seen = Seen::read(look.answer)?;
                let at = match &seen {
                    Seen::Coordinator(status) => Duration::from_millis(status.lasted_ms),
                    _ => began.elapsed(),
                };
                for line in changes.since_last(&seen, look.ended.as_ref()) {
                    crate::cli::print(&stamped(at, &line))?;
                }
                *after = look.ended.map_or(*after, |ended| ended.ended);
                Ok(())
            }
        }
    }

    fn resize(&mut self) -> Result<(), Failure> {
        match self {
            Self::Screen { screen, peers, last: Some(seen) } => {
                screen.clear().and_then(|()| screen.draw(seen, *peers)).map_err(unwritten)
            }
            _ => Ok(()),
        }
    }
}

/// A part of the terminal that is drawn again and again. Its control sequences are those of ECMA-48, and DEC's for the
/// cursor.
struct Screen {
    /// How many lines the last drawing has; the cursor stands below them.
    drawn: usize,
}

impl Screen {
    fn draw(&mut self, seen: &Seen, peers: bool) -> io::Result<()> {
        let terminal = Terminal::of(io::stdout());
        let mut lines = seen.lines(peers, &terminal);
        lines.extend(
            seen.node()
                .health
                .iter()
                .map(|line| terminal.paint(Style::Notable, &terminal.cut(&crate::report::plain(line)))),
        );
        // One line below stays free for the cursor.
        let room = terminal.height.unwrap_or(usize::MAX).saturating_sub(1).max(1);
        if lines.len() > room {
            let more = lines.len() - room + 1;
            lines.truncate(room - 1);
            lines.push(terminal.paint(Style::Faint, &terminal.cut(&format!("… {more} more lines"))));
        }
        // Without the cursor, which would jump about; upwards, then each line with whatever stood behind it wiped out.
        let mut text = String::from("\x1b[?25l");
        if self.drawn > 0 {
            text.push_str(&format!("\x1b[{}A\r", self.drawn));
        }
        for line in &lines {
            text.push_str(line);
            text.push_str("\x1b[K\n");
        }
        text.push_str("\x1b[J");
        self.drawn = lines.len();
        write(&text)
    }

    /// Wipes the terminal: lines that were broken anew by another width can't be counted.
    fn clear(&mut self) -> io::Result<()> {
        self.drawn = 0;
        write("\x1b[2J\x1b[H")
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs no cursor.
        let _ = write("\x1b[?25h");
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

fn unwritten(error: io::Error) -> Failure {
    Failure::new(Exit::General, format!("stdout can't be written: {error}"))
}
