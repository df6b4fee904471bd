//! `nixtail doctor`: looks at all that has to be right, and says what isn't and what to do.

mod agent;
mod check;
mod control;
mod credentials;
mod machine;
mod network;
mod nix;

use std::time::Duration;

use nixtail_proto::proxy::Proxies;
use serde::Serialize;

use super::builder_nix::NixArgs;
use super::join::DEFAULT_LOGIN_SERVER;
use super::socket::SocketArgs;
use super::{print, print_json};
use crate::agent::Status;
use crate::local::{Client, SCHEMA};
use crate::report::terminal::{Style, Terminal};
use crate::report::words::count;
use crate::report::{Exit, Failure};
use check::{Check, Verdict};

/// The agent answers from memory; one that doesn't hangs.
const AGENT_DEADLINE: Duration = Duration::from_secs(3);
/// How long each of the other looks may take, which are taken at the same time: with the agent's, less than 15 s.
const DEADLINE: Duration = Duration::from_secs(10);

/// Look at all that has to be right, and say what isn't and what to do: agent, credential, control, network, Nix, this machine.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Print JSON; its keys are stable under one `schema` number.
    #[arg(long)]
    json: bool,
    /// The control server [default: the running agent's, else Tailscale's].
    #[arg(long, env = "TS_CONTROL_URL", value_name = "URL")]
    login_server: Option<String>,
    #[command(flatten)]
    socket: SocketArgs,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Printed<'a> {
    schema: u32,
    /// The worst of them.
    verdict: Verdict,
    checks: &'a [Check],
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let client = args.socket.client()?;
    let socket = args.socket.path()?;
    let runtime = super::runtime()?;
    let checks = runtime.block_on(look(args.login_server.as_deref(), client, socket.as_path()));
    // What was given up, such as a name that doesn't resolve, may be waited for still; nobody needs it.
    runtime.shutdown_background();
    let checks = checks?;
    if args.json {
        let verdict = checks.iter().map(|check| check.verdict).max().unwrap_or(Verdict::Ok);
        print_json(&Printed { schema: SCHEMA, verdict, checks: &checks })?;
    } else {
        let terminal = Terminal::of(std::io::stdout());
        checks.iter().flat_map(|check| lines(check, &terminal)).try_for_each(|line| print(&line))?;
    }
    ended(&checks)
}

/// Takes all looks, the slow ones at the same time.
async fn look(login_server: Option<&str>, client: Client, socket: &std::path::Path) -> Result<Vec<Check>, Failure> {
    let (answer, is_builder) = ask_agent(client.clone()).await?;
    let status = answer.as_ref().ok();
    // One that hangs is there, too.
    let has_agent = !answer.as_ref().is_err_and(|failure| failure.exit == Exit::Unavailable);
    let asked = login_server.filter(|server| !server.is_empty());
    let login_server =
        asked.or_else(|| status.map(|status| status.login_server.as_str())).unwrap_or(DEFAULT_LOGIN_SERVER).to_owned();
    let proxies = Proxies::read(|name| std::env::var(name).ok());
    let nix = NixArgs::default();
    let (credential, control, way, relays, nix) = tokio::join!(
        credential(has_agent),
        control::checks(&login_server, &proxies, status),
        network::way_to_control(&login_server, &proxies),
        network::relays(&client, &login_server, &proxies),
        nix::checks(&nix, is_builder || !has_agent),
    );
    let mut checks = agent::checks(&answer);
    checks.push(credential);
    checks.extend([way, control, relays, nix].into_iter().flatten());
    checks.extend([machine::descriptors(), machine::namespaces(), machine::leftovers(socket, has_agent)]);
    Ok(checks)
}

/// The status of the agent, and whether it is a builder.
async fn ask_agent(client: Client) -> Result<(Result<Status, Failure>, bool), Failure> {
    let asked = tokio::task::spawn_blocking(move || {
        let status = client.get::<Status>("/status", AGENT_DEADLINE);
        let is_builder = status.is_ok() && client.get::<serde_json::Value>("/builder", AGENT_DEADLINE).is_ok();
        (status, is_builder)
    });
    asked.await.map_err(|error| Failure::new(Exit::General, error))
}

/// The file that holds it may be a pipe in which nothing is.
async fn credential(has_agent: bool) -> Check {
    let read = tokio::task::spawn_blocking(move || credentials::check(has_agent));
    match tokio::time::timeout(DEADLINE, read).await {
        Ok(Ok(check)) => check,
        Ok(Err(error)) => Check::warning("credential", error, "look at the variables that name it"),
        Err(_) => Check::warning("credential", "the file that holds it doesn't end", "name a plain file"),
    }
}

/// A check for people: the next step stands below what was found.
fn lines(check: &Check, terminal: &Terminal) -> Vec<String> {
    let (style, word) = match check.verdict {
        Verdict::Ok => (Style::Good, "ok     "),
        Verdict::Warning => (Style::Notable, "warning"),
        Verdict::Problem => (Style::Bad, "problem"),
    };
    let mut lines = vec![format!("{}  {:<16} {}", terminal.paint(style, word), check.name, check.found)];
    lines.extend(check.next.iter().map(|next| format!("{:26}{next}", "")));
    lines
}

/// A problem ends it as it would end the command that has it.
fn ended(checks: &[Check]) -> Result<(), Failure> {
    let problems: Vec<_> = checks.iter().filter(|check| check.verdict == Verdict::Problem).collect();
    let Some(first) = problems.first() else { return Ok(()) };
    let names: Vec<_> = problems.iter().map(|check| check.name).collect();
    let number = u64::try_from(problems.len()).unwrap_or(u64::MAX);
    let message = format!("{}: {}", count(number, "problem"), names.join(", "));
    Err(Failure::new(first.exit.unwrap_or(Exit::General), message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_problem_decides_how_it_ends() {
        let warning = Check::warning("udp", "no answer", "let it out");
        assert_eq!(ended(&[Check::ok("version", "1"), warning.clone()]), Ok(()));
        let problem = Check::problem("relay", Exit::Unavailable, "none", "do");
        let failure =
            ended(&[warning, problem, Check::problem("nix", Exit::Configuration, "not trusted", "do")]).unwrap_err();
        assert_eq!((failure.exit, failure.message.as_str()), (Exit::Unavailable, "2 problems: relay, nix"));
    }

    #[test]
    fn a_check_is_a_line_and_the_next_step_one_below() {
        let check = Check::warning("udp", "no answer", "let it out");
        assert_eq!(
            lines(&check, &Terminal::NONE),
            ["warning  udp              no answer", "                          let it out"]
        );
    }

    #[test]
    fn the_next_step_of_an_error_that_says_it_itself_is_taken_out() {
        let failure = Failure::new(Exit::Unavailable, "control can't be reached: refused; check the network");
        let check = Check::failed("login-server", &failure);
        assert_eq!(
            (check.found.as_str(), check.next.as_deref()),
            ("control can't be reached: refused", Some("check the network"))
        );
        assert_eq!(check.clone().softened().verdict, Verdict::Warning);
        assert_eq!(check.softened().exit, None);
    }
}
