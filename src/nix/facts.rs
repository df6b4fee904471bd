//! What a builder is: read from its own Nix and its own machine, told to a coordinator as JSON.

use std::time::Duration;

use nixtail_proto::nix_command::CONTROL_PROTOCOL;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::AsyncReadExt as _;

use super::daemon::NixHost;
use super::machine::{self, DiskError, Membership, Size};
use super::spawn::{ChildSpec, GroupChild, SpawnError, TERMINATE_GRACE, exit_code};

/// The version of [`Facts`]. A field that is added leaves it; one that goes or changes its meaning raises it.
pub const FACTS_SCHEMA: u32 = 1;

/// How long one question to Nix may take.
const QUESTION_DEADLINE: Duration = Duration::from_secs(20);

/// The longest answer of Nix: its settings with all their descriptions are some 200 KiB.
const MAX_ANSWER: u64 = 4 * 1024 * 1024;

/// What a coordinator must know to offer a builder to its Nix.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// [`FACTS_SCHEMA`].
    pub schema: u32,
    /// The version of `nixtail-control` spoken here.
    pub protocol: u32,
    /// The user to log in as.
    pub login: String,
    /// Nix' name of the system, such as `x86_64-linux`.
    pub system: String,
    /// Other systems that it builds for.
    pub extra_platforms: Vec<String>,
    /// Features that were found to be real.
    pub features: Vec<String>,
    /// Processors.
    pub cores: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Free bytes where the store is.
    pub free_disk_bytes: u64,
    /// Nix' version, such as `2.8.0`.
    pub nix_version: String,
    /// The folder that the names of store paths begin with; must be the same at both ends.
    pub store_folder: String,
    /// What to give as `remote-store`, if anything.
    pub remote_store: Option<String>,
    /// Builds at once, by its own configuration.
    pub max_jobs: u32,
    /// Whether builds are kept apart from the machine.
    pub sandbox: bool,
    /// Whether Nix trusts the login user, without which a coordinator's inputs are refused; `None` is unknown.
    #[serde(default)]
    pub trusted: Option<bool>,
    /// The speed of one processor, about 1.0 on a usual cloud machine: see [`machine::speed`].
    #[serde(default)]
    pub speed: Option<f64>,
    /// Bytes of memory that new work can have without swapping.
    #[serde(default)]
    pub memory_available_bytes: Option<u64>,
    /// Where the store is on this machine's disk, as a path of this machine.
    #[serde(default)]
    pub store_on_disk: Option<String>,
    /// The run that this builder was given with `--run`: only coordinators of the same run claim it.
    #[serde(default)]
    pub run: Option<String>,
}

/// Why a builder doesn't know itself. All of these are this machine's doing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FactsError {
    /// Nix couldn't be run.
    #[error(transparent)]
    Start(#[from] SpawnError),
    /// Nix said no.
    #[error("`{question}` failed with exit code {code}: {words}")]
    Failed {
        /// What was asked.
        question: String,
        /// How it ended.
        code: u32,
        /// The first line of its stderr.
        words: String,
    },
    /// Nix said nothing.
    #[error("`{question}` didn't answer within {} s", QUESTION_DEADLINE.as_secs())]
    Deadline {
        /// What was asked.
        question: String,
    },
    /// Its answer can't be understood.
    #[error("can't read what `{question}` answered: {reason}; this version of Nix may be too new or too old")]
    Answer {
        /// What was asked.
        question: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The system said no.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl Facts {
    /// Looks at this machine and asks `host`.
    pub async fn gather(host: &NixHost, login: &str) -> Result<Self, FactsError> {
        // `show-config` is the name before 2.20.
        let (question, text) = match ask(&host.nix(&["show-config", "--json"])).await {
            Ok(text) => ("nix show-config", text),
            Err(_) => ("nix config show", ask(&host.nix(&["config", "show", "--json"])).await?),
        };
        let settings =
            Settings::read(&text).map_err(|reason| FactsError::Answer { question: question.into(), reason })?;
        let version = ask(&ChildSpec { arguments: vec!["--version".into()], ..host.nix(&[]) }).await?;
        let store_folder = host.store.store_folder();
        let on_disk = match &host.store {
            super::daemon::StoreConfig::Chroot { root } => root.clone(),
            _ => store_folder.clone(),
        };
        let size = Size::of(&Membership::own());
        let mut features = settings.features;
        features.retain(|feature| feature != "kvm" || kvm_opens());
        Ok(Self {
            schema: FACTS_SCHEMA,
            protocol: CONTROL_PROTOCOL,
            login: login.to_owned(),
            system: settings.system,
            extra_platforms: settings.extra_platforms,
            features,
            cores: size.cores,
            memory_bytes: size.memory_bytes,
            free_disk_bytes: machine::free_disk(&on_disk)?,
            nix_version: version_number(&version),
            store_folder: store_folder.display().to_string(),
            remote_store: host.store.published(),
            max_jobs: settings.max_jobs,
            sandbox: settings.sandbox,
            trusted: None,
            speed: tokio::task::spawn_blocking(machine::speed).await.ok(),
            memory_available_bytes: Some(machine::now(&on_disk).memory_available_bytes),
            store_on_disk: Some(on_disk.display().to_string()),
            run: None,
        })
    }
}

/// The settings of Nix that count here.
#[derive(Debug, PartialEq, Eq)]
struct Settings {
    system: String,
    extra_platforms: Vec<String>,
    features: Vec<String>,
    max_jobs: u32,
    sandbox: bool,
}

impl Settings {
    /// Reads the JSON of `nix show-config --json`: an object of settings, each with its `value`.
    fn read(text: &str) -> Result<Self, String> {
        let all: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let value = |name: &str| all.get(name).and_then(|setting| setting.get("value"));
        let words = |name: &str| -> Vec<String> {
            value(name)
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect()
        };
        let system = value("system").and_then(Value::as_str).ok_or("there is no `system`")?.to_owned();
        Ok(Self {
            system,
            extra_platforms: words("extra-platforms"),
            features: words("system-features"),
            max_jobs: value("max-jobs")
                .and_then(Value::as_u64)
                .map_or(1, |jobs| u32::try_from(jobs).unwrap_or(u32::MAX)),
            // `relaxed` is a word where the others are truth values.
            sandbox: value("sandbox").is_some_and(|sandbox| sandbox != &Value::Bool(false) && sandbox != "false"),
        })
    }
}

/// The last word of `nix (Nix) 2.8.0`.
fn version_number(text: &str) -> String {
    text.split_whitespace().last().unwrap_or("unknown").chars().take(40).collect()
}

/// Runs a question and returns its stdout.
async fn ask(spec: &ChildSpec) -> Result<String, FactsError> {
    let words: Vec<String> = spec.arguments.iter().map(|word| word.display().to_string()).collect();
    let question = format!("{} {}", spec.program.display(), words.join(" "));
    let mut child = GroupChild::start(spec).await?;
    let Some((stdin, stdout, stderr)) = child.take_pipes() else {
        return Err(FactsError::Answer { question, reason: "it has no pipes".into() });
    };
    drop(stdin);
    let (mut stdout, mut stderr) = (stdout.take(MAX_ANSWER), stderr.take(MAX_ANSWER));
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let all = async { tokio::join!(stdout.read_to_end(&mut out), stderr.read_to_end(&mut err), child.wait()) };
    let answered = tokio::time::timeout(QUESTION_DEADLINE, all).await;
    let Ok((_, _, status)) = answered else {
        let _ = child.terminate(TERMINATE_GRACE).await;
        return Err(FactsError::Deadline { question });
    };
    match status.map(exit_code) {
        Ok(0) => String::from_utf8(out).map_err(|error| FactsError::Answer { question, reason: error.to_string() }),
        Ok(code) => {
            let first = String::from_utf8_lossy(&err).lines().next().unwrap_or_default().to_owned();
            let words = first.chars().filter(|c| !c.is_control()).take(300).collect();
            Err(FactsError::Failed { question, code, words })
        }
        Err(error) => Err(FactsError::Answer { question, reason: error.to_string() }),
    }
}

/// Nix names the feature where the file exists; builds need it to open.
fn kvm_opens() -> bool {
    std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_of_nix_are_read() {
        let text = r#"{"system":{"value":"x86_64-linux"},"extra-platforms":{"value":["i686-linux"]},
            "system-features":{"value":["kvm","benchmark"]},"max-jobs":{"value":3},"sandbox":{"value":"relaxed"}}"#;
        let wanted = Settings {
            system: "x86_64-linux".into(),
            extra_platforms: vec!["i686-linux".into()],
            features: vec!["kvm".into(), "benchmark".into()],
            max_jobs: 3,
            sandbox: true,
        };
        assert_eq!(Settings::read(text), Ok(wanted));
        for bad in ["", "[]", "{}", r#"{"system":{"value":1}}"#] {
            assert!(Settings::read(bad).is_err(), "{bad}");
        }
        let off = Settings::read(r#"{"system":{"value":"a"},"sandbox":{"value":false}}"#).unwrap();
        assert!(!off.sandbox);
    }

    #[test]
    fn a_version_is_the_last_word() {
        assert_eq!(version_number("nix (Nix) 2.8.0\n"), "2.8.0");
        assert_eq!(version_number("nix (Determinate Nix 3.1) 2.28.1"), "2.28.1");
        assert_eq!(version_number(""), "unknown");
    }

    #[tokio::test]
    async fn a_question_that_fails_says_so() {
        let spec = ChildSpec::new("/bin/sh", ["-c", "echo why >&2; exit 4"]);
        let error = ask(&spec).await.unwrap_err();
        assert!(matches!(error, FactsError::Failed { code: 4, ref words, .. } if words == "why"), "{error}");
    }
}
