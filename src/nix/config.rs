//! The pieces of `ssh_config` and `known_hosts` that a coordinator writes.
//!
//! Why each option is there: `ssh_config(5)`, and the measurements behind the design (§4.4).

use std::path::{Path, PathBuf};

/// A value that can't stand in one of these files.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what} {value:?} can't stand in a configuration file: it is empty, or holds quotes, `%`, `$` or control characters"
)]
pub struct ConfigError {
    /// What it is.
    pub what: &'static str,
    /// The value.
    pub value: String,
}

/// A builder as `ssh` is to reach it: through the agent's Unix socket, whose descriptor it is handed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshHost {
    /// What Nix calls it, and `ssh` in known_hosts.
    pub alias: String,
    /// What `nixtail nc` is asked for.
    pub node: String,
    /// The port inside the tunnel.
    pub port: u16,
    /// The user to log in as.
    pub user: String,
    /// The program `nixtail`.
    pub nixtail: PathBuf,
    /// The agent's socket.
    pub socket: PathBuf,
    /// The known_hosts file with the builder's key.
    pub known_hosts: PathBuf,
}

impl SshHost {
    /// The `Host` block.
    ///
    /// There is no `HostName`: Nix' own host-key column is checked against the alias. `ServerAliveCountMax 6` gives up
    /// after 30 s, which a suspended runner survives and a dead one doesn't.
    pub fn block(&self) -> Result<String, ConfigError> {
        for (what, value) in [("host alias", &self.alias), ("node name", &self.node), ("user", &self.user)] {
            check_word(what, value)?;
        }
        let nixtail = checked_path("path", &self.nixtail)?;
        let socket = checked_path("path", &self.socket)?;
        let known_hosts = checked_path("path", &self.known_hosts)?;
        Ok(format!(
            "Host {alias}\n\
             \x20 User {user}\n\
             \x20 ProxyCommand {nixtail} nc --fdpass --socket {socket} {node} {port}\n\
             \x20 ProxyUseFdpass yes\n\
             \x20 HostKeyAlias {alias}\n\
             \x20 UserKnownHostsFile {known_hosts}\n\
             \x20 GlobalKnownHostsFile /dev/null\n\
             \x20 StrictHostKeyChecking yes\n\
             \x20 UpdateHostKeys no\n\
             \x20 VerifyHostKeyDNS no\n\
             \x20 IdentityFile none\n\
             \x20 IdentitiesOnly yes\n\
             \x20 IdentityAgent none\n\
             \x20 BatchMode yes\n\
             \x20 Ciphers aes128-gcm@openssh.com\n\
             \x20 KexAlgorithms curve25519-sha256\n\
             \x20 Compression no\n\
             \x20 ConnectTimeout 10\n\
             \x20 ServerAliveInterval 5\n\
             \x20 ServerAliveCountMax 6\n\
             \x20 ControlMaster no\n\
             \x20 ControlPath none\n\
             \x20 ForwardAgent no\n\
             \x20 ForwardX11 no\n\
             \x20 RequestTTY no\n",
            alias = self.alias,
            user = self.user,
            node = self.node,
            port = self.port,
        ))
    }
}

/// A known_hosts line: `alias` has `host_key` (an `authorized_keys` line without a comment).
pub fn known_hosts_line(alias: &str, host_key: &str) -> Result<String, ConfigError> {
    check_word("host alias", alias)?;
    let mut words = host_key.split(' ');
    let (kind, key, more) = (words.next().unwrap_or_default(), words.next().unwrap_or_default(), words.next());
    check_word("host key", kind)?;
    let is_base64 = |c: char| c.is_ascii_alphanumeric() || "+/=".contains(c);
    if key.is_empty() || more.is_some() || !key.chars().all(is_base64) {
        return Err(ConfigError { what: "host key", value: host_key.chars().take(80).collect() });
    }
    Ok(format!("{alias} {kind} {key}\n"))
}

fn error(what: &'static str, value: &str) -> ConfigError {
    ConfigError { what, value: value.chars().take(80).collect() }
}

/// One word that ssh and Nix take as it is: no blank, no pattern, no quote, nothing that is expanded.
fn check_word(what: &'static str, value: &str) -> Result<(), ConfigError> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-@:+".contains(c);
    if value.is_empty() || value.starts_with('-') || !value.chars().all(is_plain) {
        return Err(error(what, value));
    }
    Ok(())
}

/// A path in double quotes. `ProxyCommand` goes through a shell and `%` expansion, so neither may find anything to do.
fn checked_path(what: &'static str, path: &Path) -> Result<String, ConfigError> {
    let refused = || error(what, &path.display().to_string());
    let text = path.to_str().filter(|_| path.is_absolute()).ok_or_else(refused)?;
    if text.chars().any(|c| c.is_control() || "\"'\\`$%".contains(c)) {
        return Err(refused());
    }
    Ok(format!("\"{text}\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> SshHost {
        SshHost {
            alias: "run-1-b1".into(),
            node: "ci-1-1-b1".into(),
            port: 22,
            user: "bob".into(),
            nixtail: "/opt/my tools/nixtail".into(),
            socket: "/run/nixtail/s".into(),
            known_hosts: "/run/nixtail/known_hosts".into(),
        }
    }

    #[test]
    fn a_host_block_goes_through_the_agents_socket_and_pins_the_key() {
        let block = host().block().unwrap();
        for line in [
            "Host run-1-b1",
            "  ProxyCommand \"/opt/my tools/nixtail\" nc --fdpass --socket \"/run/nixtail/s\" ci-1-1-b1 22",
            "  ProxyUseFdpass yes",
            "  HostKeyAlias run-1-b1",
            "  StrictHostKeyChecking yes",
            "  UserKnownHostsFile \"/run/nixtail/known_hosts\"",
            "  Ciphers aes128-gcm@openssh.com",
        ] {
            assert!(block.lines().any(|found| found == line), "{line} missing in\n{block}");
        }
        assert!(!block.contains("HostName"));
    }

    #[test]
    fn openssh_reads_the_block_as_it_is_meant() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config");
        std::fs::write(&file, host().block().unwrap()).unwrap();
        let output = std::process::Command::new("ssh").arg("-G").arg("-F").arg(&file).arg("run-1-b1").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        for line in [
            "user bob",
            "proxycommand \"/opt/my tools/nixtail\" nc --fdpass --socket \"/run/nixtail/s\" ci-1-1-b1 22",
            "proxyusefdpass yes",
            "stricthostkeychecking true",
            "userknownhostsfile /run/nixtail/known_hosts",
            "serveralivecountmax 6",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} missing in\n{text}");
        }
    }

    #[test]
    fn what_would_break_out_of_a_line_is_refused() {
        for bad in ["", "-oProxyCommand=x", "a b", "a\nHost *", "a*", "!a", "%h", "$(id)"] {
            assert!(SshHost { alias: bad.into(), ..host() }.block().is_err(), "{bad}");
            assert!(SshHost { node: bad.into(), ..host() }.block().is_err(), "{bad}");
            assert!(known_hosts_line(bad, "ssh-ed25519 AAAA").is_err(), "{bad}");
        }
        for bad in ["relative", "/a\"b", "/a$b", "/a%b", "/a\nb"] {
            assert!(SshHost { socket: bad.into(), ..host() }.block().is_err(), "{bad}");
        }
        for bad in ["", "ssh-ed25519", "ssh-ed25519 AAAA comment", "ssh-ed25519 A\nb", "* AAAA"] {
            assert!(known_hosts_line("a", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_known_hosts_line_is_this() {
        assert_eq!(known_hosts_line("b1", "ssh-ed25519 AAAA").unwrap(), "b1 ssh-ed25519 AAAA\n");
    }
}
