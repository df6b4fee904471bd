//! The machines file: one line per builder, of eight columns (the Nix manual, "Remote Builds"; read by `NixOS/nix`
//! `src/libstore/machines.cc`).

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// A builder as Nix is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Column 1, such as `ssh-ng://builder@alias`.
    pub store_uri: String,
    /// Column 2: systems that it builds for; never empty.
    pub systems: Vec<String>,
    /// Column 4: how many builds at once. At least 2: with one slot Nix polls every five seconds.
    pub max_jobs: u32,
    /// Column 5. An integer, as Nix before 2.20 wants it.
    pub speed_factor: u32,
    /// Column 6.
    pub supported_features: Vec<String>,
    /// Column 7.
    pub mandatory_features: Vec<String>,
    /// Column 8, as an `authorized_keys` line without a comment; `None` leaves it to ssh's known_hosts.
    pub host_key: Option<String>,
}

/// A value that can't stand in a machines file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{value:?} can't stand in Nix' machines file: it is empty or holds blanks, commas, `;`, `#` or control characters"
)]
pub struct MachineError {
    /// The value.
    pub value: String,
}

impl Machine {
    /// The line, without its end. Whatever comes from a builder is checked: a blank or `;` would add columns or builders.
    pub fn line(&self) -> Result<MachineLine, MachineError> {
        check(&self.store_uri, ";#")?;
        let host_key = self.host_key.as_ref().map_or_else(|| "-".to_owned(), |line| STANDARD.encode(line));
        Ok(MachineLine(format!(
            "{} {} - {} {} {} {} {host_key}",
            self.store_uri,
            // An empty column would mean the coordinator's own system.
            if self.systems.is_empty() { Err(MachineError { value: String::new() }) } else { list(&self.systems) }?,
            self.max_jobs.max(2),
            self.speed_factor.max(1),
            list(&self.supported_features)?,
            list(&self.mandatory_features)?,
        )))
    }
}

/// A checked line.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MachineLine(String);

impl fmt::Display for MachineLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn list(values: &[String]) -> Result<String, MachineError> {
    values.iter().try_for_each(|value| check(value, ";#,@"))?;
    Ok(if values.is_empty() { "-".to_owned() } else { values.join(",") })
}

fn check(value: &str, forbidden: &str) -> Result<(), MachineError> {
    let is_plain = |c: char| c.is_ascii_graphic() && !forbidden.contains(c);
    if value.is_empty() || value == "-" || !value.chars().all(is_plain) {
        return Err(MachineError { value: value.chars().take(80).collect() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            store_uri: "ssh-ng://bob@run-1-b1".into(),
            systems: vec!["x86_64-linux".into(), "i686-linux".into()],
            max_jobs: 4,
            speed_factor: 1,
            supported_features: vec!["kvm".into(), "big-parallel".into()],
            mandatory_features: vec![],
            host_key: Some("ssh-ed25519 AAAA".into()),
        }
    }

    #[test]
    fn a_line_has_eight_columns() {
        let line = machine().line().unwrap().to_string();
        assert_eq!(
            line,
            "ssh-ng://bob@run-1-b1 x86_64-linux,i686-linux - 4 1 kvm,big-parallel - c3NoLWVkMjU1MTkgQUFBQQ=="
        );
        let bare = Machine { host_key: None, max_jobs: 1, speed_factor: 0, supported_features: vec![], ..machine() };
        assert_eq!(bare.line().unwrap().to_string(), "ssh-ng://bob@run-1-b1 x86_64-linux,i686-linux - 2 1 - - -");
    }

    #[test]
    fn what_a_builder_says_adds_no_column_and_no_builder() {
        for bad in ["", "-", "a b", "a;ssh-ng://evil", "a#b", "a\nb", "a,b", "@/etc/passwd", "é"] {
            let feature = Machine { supported_features: vec![bad.into()], ..machine() };
            assert!(feature.line().is_err(), "{bad}");
            let system = Machine { systems: vec![bad.into()], ..machine() };
            assert!(system.line().is_err(), "{bad}");
        }
        assert!(Machine { systems: vec![], ..machine() }.line().is_err());
        assert!(Machine { store_uri: "ssh-ng://a b".into(), ..machine() }.line().is_err());
    }
}
