//! An end of a measurement, as a process of its own: it takes connections from the other end, and does what the driver orders
//! over stdin. It leaves when that ends.

mod protocol;
mod transport;
pub(crate) mod words;

use std::error::Error;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nixtail::agent::{Agent, Config};
use nixtail::auth::Credential;
use nixtail_proto::secret::Secret;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::figures::quantile;
use protocol::{CHUNK, Requests, Wanted};
use transport::{Connection, Kernel, Transport};
use words::{Answer, Destination, Order, Streams};

/// How long a dial or an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long leaving may take: nobody waits for what these nodes leave behind.
const LEAVE: Duration = Duration::from_secs(2);

/// Runs inside the namespaces; a node's key comes from the environment.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    kind: Kind,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Kind {
    /// The kernel's TCP.
    Kernel { listen: IpAddr },
    /// A node of ours.
    Nixtail {
        control: String,
        hostname: String,
        port: u16,
        /// Through relays alone.
        #[arg(long)]
        relayed: bool,
        #[arg(long, env = "TS_AUTHKEY", hide = true)]
        key: String,
    },
}

/// Takes part until stdin ends.
pub(crate) fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_env_filter("warn").with_ansi(false).with_writer(io::stderr).init();
    // As many threads as the program itself has.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let ended = runtime.block_on(async {
        match &args.kind {
            Kind::Kernel { listen } => kernel(*listen).await,
            Kind::Nixtail { control, hostname, port, relayed, key } => {
                nixtail(control, hostname, *port, *relayed, key).await
            }
        }
    });
    // A blocked read of stdin, if any, mustn't keep the process.
    runtime.shutdown_background();
    if let Err(error) = &ended {
        say(&Answer::error(error))?;
    }
    ended
}

async fn kernel(listen: IpAddr) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind((listen, 0)).await?;
    let port = listener.local_addr()?.port();
    let tasks = Tasks::default();
    let served = tasks.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // Without it answers are late, and the figures tell.
            let _ = stream.set_nodelay(true);
            served.serve(stream);
        }
    });
    take_orders(&Kernel, &tasks, Answer { port, ..Answer::default() }).await
}

async fn nixtail(control: &str, hostname: &str, port: u16, relayed: bool, key: &str) -> Result<(), Box<dyn Error>> {
    let credential = Credential::AuthKey(Secret::new(key.to_owned()));
    let config = Config::new(control.to_owned(), Some(credential), hostname.to_owned());
    let agent = Agent::join(Config { direct: !relayed, ..config }).await?;
    let mut listener = agent.listen(port).await?;
    let tasks = Tasks::default();
    let served = tasks.clone();
    tokio::spawn(async move {
        while let Ok(stream) = listener.accept().await {
            served.serve(stream);
        }
    });
    let addresses = agent.status().await.own.addresses.iter().map(ToString::to_string).collect();
    take_orders(&agent, &tasks, Answer { addresses, port, ..Answer::default() }).await?;
    Ok(agent.leave(LEAVE).await?)
}

/// Says that it is ready, and then answers each line of stdin by one of stdout.
async fn take_orders<T: Transport>(transport: &T, tasks: &Tasks, ready: Answer) -> Result<(), Box<dyn Error>> {
    say(&ready)?;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let order: Order = serde_json::from_str(&line).map_err(|error| format!("no order: {line}: {error}"))?;
        say(&obey(transport, tasks, order).await.unwrap_or_else(Answer::error))?;
    }
    Ok(())
}

fn say(answer: &Answer) -> io::Result<()> {
    use std::io::Write as _;
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    let mut stdout = io::stdout().lock();
    stdout.write_all(&line)?;
    stdout.flush()
}

async fn obey<T: Transport>(transport: &T, tasks: &Tasks, order: Order) -> io::Result<Answer> {
    match order {
        Order::Send(Streams { to, streams }) => {
            for _ in 0..streams {
                let mut connection = open(transport, &to, Wanted::Sink).await?;
                tasks.spawn(async move { protocol::pour(connection.get()?, CHUNK).await });
            }
            Ok(Answer::default())
        }
        Order::Receive(Streams { to, streams }) => {
            for _ in 0..streams {
                let mut connection = open(transport, &to, Wanted::Source).await?;
                let received = tasks.received.clone();
                tasks.spawn(async move { protocol::drain(connection.get()?, &received).await });
            }
            Ok(Answer::default())
        }
        Order::Stop => {
            tasks.stop().await;
            Ok(Answer::default())
        }
        Order::Count => Ok(tasks.count()),
        Order::Echo { to, bytes, depth, pause_us, millis } => {
            let (pause, duration) = (Duration::from_micros(pause_us), Duration::from_millis(millis));
            let mut connection = open(transport, &to, Wanted::Echo).await?;
            let requests = Requests { bytes, depth, pause, duration };
            let asked = timeout(duration + PATIENCE, protocol::request(connection.get()?, &requests));
            let answers = asked.await.map_err(|_| too_slow("answers"))??;
            let times = quantiles(&answers.took);
            Ok(Answer { count: answers.count, seconds: answers.elapsed.as_secs_f64(), ..times })
        }
        Order::Connect { to, times } => {
            let mut took = Vec::new();
            for _ in 0..times {
                let begun = Instant::now();
                let mut connection = open(transport, &to, Wanted::Echo).await?;
                let stream = connection.get()?;
                stream.write_all(&[0]).await?;
                stream.flush().await?;
                timeout(PATIENCE, stream.read_exact(&mut [0])).await.map_err(|_| too_slow("the first byte"))??;
                took.push(begun.elapsed());
            }
            Ok(quantiles(&took))
        }
        Order::Path { to } => Ok(Answer { direct: transport.is_direct(to).await?, ..Answer::default() }),
    }
}

async fn open<T: Transport>(transport: &T, to: &Destination, wanted: Wanted) -> io::Result<Held<T::Connection>> {
    let dialled = timeout(PATIENCE, transport.dial(to));
    let mut connection = Held(Some(dialled.await.map_err(|_| too_slow("a dial"))??));
    protocol::ask(connection.get()?, wanted).await?;
    Ok(connection)
}

fn too_slow(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("{what} took over {} s", PATIENCE.as_secs()))
}

fn quantiles(took: &[Duration]) -> Answer {
    let micros: Vec<f64> = took.iter().map(|took| took.as_secs_f64() * 1e6).collect();
    let at = |percent| quantile(&micros, percent).unwrap_or_default();
    Answer { count: took.len() as u64, p50_us: at(50), p99_us: at(99), ..Answer::default() }
}

/// A connection that ends by a RST when nobody wants it any more.
struct Held<C: Connection>(Option<C>);

impl<C: Connection> Held<C> {
    fn get(&mut self) -> io::Result<&mut C> {
        self.0.as_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl<C: Connection> Drop for Held<C> {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            connection.abort();
        }
    }
}

/// What goes on until it is stopped, and the bytes that came.
#[derive(Debug, Clone)]
struct Tasks {
    running: Arc<Mutex<JoinSet<io::Result<()>>>>,
    received: Arc<AtomicU64>,
    started: Instant,
}

impl Default for Tasks {
    fn default() -> Self {
        Self { running: Arc::default(), received: Arc::default(), started: Instant::now() }
    }
}

impl Tasks {
    /// How a connection ended says nothing: whoever has enough breaks it off.
    fn spawn(&self, task: impl Future<Output = io::Result<()>> + Send + 'static) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).spawn(task);
    }

    fn serve(&self, connection: impl Connection) {
        let received = self.received.clone();
        self.spawn(async move { protocol::serve(Held(Some(connection)).get()?, &received).await });
    }

    async fn stop(&self) {
        let mut running = std::mem::take(&mut *self.running.lock().unwrap_or_else(PoisonError::into_inner));
        running.shutdown().await;
    }

    fn count(&self) -> Answer {
        let at_us = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        Answer { received: self.received.load(Ordering::Relaxed), at_us, ..Answer::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_end_does_what_it_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = Destination { to: listener.local_addr().unwrap().to_string(), through: None };
        let (ours, theirs) = (Tasks::default(), Tasks::default());
        let served = theirs.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                served.serve(stream);
            }
        });
        let order = async |order| obey(&Kernel, &ours, order).await.unwrap();
        order(Order::Send(Streams { to: to.clone(), streams: 2 })).await;
        order(Order::Receive(Streams { to: to.clone(), streams: 1 })).await;
        let deadline = Instant::now() + PATIENCE;
        while ours.count().received == 0 || theirs.count().received == 0 {
            assert!(Instant::now() < deadline, "nothing comes");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        order(Order::Stop).await;
        theirs.stop().await;
        assert_eq!(ours.count().received, order(Order::Count).await.received, "nothing comes any more");

        let echo = Order::Echo { to: to.clone(), bytes: 64, depth: 1, pause_us: 0, millis: 20 };
        let answer = order(echo).await;
        assert!(answer.count > 0 && answer.p50_us > 0.0 && answer.p99_us >= answer.p50_us, "{answer:?}");
        assert_eq!(order(Order::Connect { to, times: 3 }).await.count, 3);
        assert!(order(Order::Path { to: "127.0.0.1".parse().unwrap() }).await.direct);
    }
}
