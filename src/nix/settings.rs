//! The settings of the Nix at hand, and how Nix is asked anything.

use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncReadExt as _;

use super::daemon::NixHost;
use super::spawn::{ChildSpec, GroupChild, SpawnError, TERMINATE_GRACE, exit_code};
use crate::report::plain;

/// How long one question to Nix may take.
const QUESTION_DEADLINE: Duration = Duration::from_secs(20);

/// The longest answer of Nix: its settings with all their descriptions are some 200 KiB.
const MAX_ANSWER: u64 = 4 * 1024 * 1024;

/// Why Nix didn't answer a question. All of these are this machine's doing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuestionError {
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
}

/// The settings of Nix that count for a builder, as its files and `NIX_CONFIG` have them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Nix' name of the system.
    pub system: String,
    /// `extra-platforms`.
    pub extra_platforms: Vec<String>,
    /// `system-features`.
    pub features: Vec<String>,
    /// Whether somebody has written the features down, so that they aren't only Nix' default.
    pub features_are_given: bool,
    /// `max-jobs`, where somebody has written it down.
    pub max_jobs: Option<u32>,
    /// `cores`, where somebody has written it down.
    pub cores: Option<u32>,
    /// `sandbox`: on or relaxed.
    pub sandbox: bool,
    /// `builders`: where builds would be sent on to.
    pub builders: String,
    /// The experimental features that are switched on; `None` where Nix gives only numbers, as 2.8 does.
    pub experimental: Option<Vec<String>>,
    /// `use-cgroups` and `auto-allocate-uids`, both of which `uid-range` needs.
    pub allocates_uids: bool,
}

impl Settings {
    /// Asks Nix.
    ///
    /// # Errors
    /// When it doesn't answer, or not in a way that is understood.
    pub async fn ask(host: &NixHost) -> Result<Self, QuestionError> {
        // `show-config` is the name before 2.20, and went with 2.3x.
        let (question, text) = match ask(&host.nix(&["show-config", "--json"])).await {
            Ok(text) => ("nix show-config", text),
            Err(QuestionError::Start(error)) => return Err(error.into()),
            Err(_) => ("nix config show", ask(&host.nix(&["config", "show", "--json"])).await?),
        };
        Self::read(&text).map_err(|reason| QuestionError::Answer { question: question.into(), reason })
    }

    /// Reads the JSON of `nix show-config --json`: an object of settings, each with its `value` and `defaultValue`.
    fn read(text: &str) -> Result<Self, String> {
        let all: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let value = |name: &str| all.get(name).and_then(|setting| setting.get("value"));
        let is_given = |name: &str| all.get(name).is_some_and(|one| one.get("value") != one.get("defaultValue"));
        let words = |name: &str| -> Vec<String> {
            let members = value(name).and_then(Value::as_array).into_iter().flatten();
            members.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let number = |name: &str| {
            let number = value(name).and_then(Value::as_u64).filter(|_| is_given(name));
            number.map(|number| u32::try_from(number).unwrap_or(u32::MAX))
        };
        let is_on = |name: &str| value(name).and_then(Value::as_bool).unwrap_or(false);
        let numbers_only =
            value("experimental-features").and_then(Value::as_array).is_none_or(|all| all.iter().any(Value::is_number));
        Ok(Self {
            system: value("system").and_then(Value::as_str).ok_or("there is no `system`")?.to_owned(),
            extra_platforms: words("extra-platforms"),
            features: words("system-features"),
            features_are_given: is_given("system-features"),
            max_jobs: number("max-jobs"),
            cores: number("cores"),
            // `relaxed` is a word where the others are truth values.
            sandbox: value("sandbox").is_some_and(|sandbox| sandbox != &Value::Bool(false) && sandbox != "false"),
            builders: value("builders").and_then(Value::as_str).unwrap_or_default().to_owned(),
            experimental: (!numbers_only).then(|| words("experimental-features")),
            allocates_uids: is_on("use-cgroups") && is_on("auto-allocate-uids"),
        })
    }

    /// Whether builds would be sent on to other builders: a line of `builders` that isn't empty, or a file named there that
    /// has one.
    pub fn forwards(&self) -> bool {
        let is_machine = |line: &str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
        self.builders.split([';', '\n']).any(|line| match line.trim().strip_prefix('@') {
            Some(file) => std::fs::read_to_string(file).is_ok_and(|text| text.split([';', '\n']).any(is_machine)),
            None => is_machine(line),
        })
    }
}

/// The version of the Nix at hand, such as `2.8.0`.
///
/// # Errors
/// When it doesn't answer.
pub async fn version(host: &NixHost) -> Result<String, QuestionError> {
    Ok(version_number(&ask(&ChildSpec { arguments: vec!["--version".into()], ..host.nix(&[]) }).await?))
}

/// The last word of `nix (Nix) 2.8.0`.
fn version_number(text: &str) -> String {
    text.split_whitespace().last().unwrap_or("unknown").chars().take(40).collect()
}

/// Runs a question and returns its stdout.
async fn ask(spec: &ChildSpec) -> Result<String, QuestionError> {
    let words: Vec<String> = spec.arguments.iter().map(|word| word.display().to_string()).collect();
    let question = format!("{} {}", spec.program.display(), words.join(" "));
    let mut child = GroupChild::start(spec).await?;
    let Some((stdin, stdout, stderr)) = child.take_pipes() else {
        return Err(QuestionError::Answer { question, reason: "it has no pipes".into() });
    };
    drop(stdin);
    let (mut stdout, mut stderr) = (stdout.take(MAX_ANSWER), stderr.take(MAX_ANSWER));
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let all = async { tokio::join!(stdout.read_to_end(&mut out), stderr.read_to_end(&mut err), child.wait()) };
    let answered = tokio::time::timeout(QUESTION_DEADLINE, all).await;
    let Ok((_, _, status)) = answered else {
        let _ = child.terminate(TERMINATE_GRACE).await;
        return Err(QuestionError::Deadline { question });
    };
    match status.map(exit_code) {
        Ok(0) => String::from_utf8(out).map_err(|error| QuestionError::Answer { question, reason: error.to_string() }),
        Ok(code) => {
            let err = String::from_utf8_lossy(&err);
            let mut lines = err.lines();
            let line = lines.clone().find(|line| line.contains("error:")).or_else(|| lines.next()).unwrap_or_default();
            Err(QuestionError::Failed { question, code, words: plain(line).chars().take(300).collect() })
        }
        Err(error) => Err(QuestionError::Answer { question, reason: error.to_string() }),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Nix' defaults on a machine with `/dev/kvm`.
    pub(in crate::nix) fn defaults() -> Settings {
        Settings {
            system: "x86_64-linux".into(),
            extra_platforms: vec![],
            features: ["benchmark", "big-parallel", "kvm", "nixos-test"].map(str::to_owned).to_vec(),
            features_are_given: false,
            max_jobs: None,
            cores: None,
            sandbox: true,
            builders: String::new(),
            experimental: None,
            allocates_uids: false,
        }
    }

    #[test]
    fn the_settings_of_nix_are_read() {
        let text = r#"{"system":{"value":"x86_64-linux"},"extra-platforms":{"value":["i686-linux"]},
            "system-features":{"value":["kvm","benchmark"],"defaultValue":["benchmark"]},
            "max-jobs":{"value":3,"defaultValue":1},"cores":{"value":2,"defaultValue":2},"sandbox":{"value":"relaxed"},
            "builders":{"value":"@/etc/nix/machines"},"experimental-features":{"value":["nix-command"]},
            "use-cgroups":{"value":true},"auto-allocate-uids":{"value":true}}"#;
        let wanted = Settings {
            system: "x86_64-linux".into(),
            extra_platforms: vec!["i686-linux".into()],
            features: vec!["kvm".into(), "benchmark".into()],
            features_are_given: true,
            max_jobs: Some(3),
            cores: None,
            sandbox: true,
            builders: "@/etc/nix/machines".into(),
            experimental: Some(vec!["nix-command".into()]),
            allocates_uids: true,
        };
        assert_eq!(Settings::read(text), Ok(wanted));
        for bad in ["", "[]", "{}", r#"{"system":{"value":1}}"#] {
            assert!(Settings::read(bad).is_err(), "{bad}");
        }
        let off = Settings::read(r#"{"system":{"value":"a"},"sandbox":{"value":false},"max-jobs":{"value":"auto"}}"#);
        assert!(matches!(off, Ok(Settings { sandbox: false, max_jobs: None, .. })), "{off:?}");
        // Nix 2.8 gives these as numbers.
        let old = Settings::read(r#"{"system":{"value":"a"},"experimental-features":{"value":[3]}}"#);
        assert_eq!(old.unwrap().experimental, None);
    }

    #[test]
    fn builds_are_sent_on_where_a_machine_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("machines");
        std::fs::write(&file, "# none\n\n").unwrap();
        let forwards = |builders: String| Settings { builders, ..defaults() }.forwards();
        assert!(!forwards(String::new()));
        assert!(!forwards("@/nowhere".into()));
        assert!(!forwards(format!("@{}", file.display())));
        std::fs::write(&file, "ssh-ng://other x86_64-linux\n").unwrap();
        assert!(forwards(format!("@{}", file.display())));
        assert!(forwards("ssh://a ; ssh://b".into()));
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
        assert!(matches!(error, QuestionError::Failed { code: 4, ref words, .. } if words == "why"), "{error}");
    }
}
