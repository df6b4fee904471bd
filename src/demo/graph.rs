//! The demo's derivations: eight leaves, three middles, one top; no nixpkgs, no internet, a static busybox for a builder.

use std::collections::BTreeMap;
use std::path::Path;

/// How many derivations there are.
pub(super) const DERIVATIONS: usize = LEAVES + MIDDLES + 1;
const LEAVES: usize = 8;
const MIDDLES: usize = 3;

/// The expression. `salt` makes each run's derivations new; `busybox` is a folder with a static `busybox` in it.
pub(super) fn expression(busybox: &Path, salt: &str) -> String {
    format!(
        r#"let
  tools = builtins.path {{ path = {busybox}; name = "demo-tools"; }};
  run = name: inputs: script: derivation {{
    inherit name inputs;
    salt = "{salt}";
    system = builtins.currentSystem;
    builder = "${{tools}}/busybox";
    args = [ "sh" "-euc" ''
      busybox="${{tools}}/busybox"
      echo "building ${{name}}"
      $busybox sleep 0.3
      total=0
      for input in $inputs; do total=$((total + $($busybox cat $input))); done
      ${{script}}
    '' ];
  }};
  numbers = n: builtins.genList (i: i) n;
  leaf = i: run "demo-leaf-${{toString i}}" [ ] "echo ${{toString (i * i)}} > $out";
  leaves = map leaf (numbers {LEAVES});
  middle = i: run "demo-middle-${{toString i}}"
    (map (builtins.elemAt leaves) (builtins.filter (j: j - {MIDDLES} * (j / {MIDDLES}) == i) (numbers {LEAVES})))
    "echo $total > $out";
in run "demo-top" (map middle (numbers {MIDDLES})) "echo $total > $out"
"#,
        busybox = nix_path(busybox),
    )
}

/// What the top's output must hold: the sum of the leaves' squares.
pub(super) fn expected_output() -> String {
    format!("{}\n", (0..LEAVES).map(|i| i * i).sum::<usize>())
}

/// Who built what, read from Nix's own messages.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Attribution {
    /// The names of derivations by the builder that Nix sent them to.
    pub(super) by_builder: BTreeMap<String, Vec<String>>,
}

impl Attribution {
    /// Reads one line of Nix's stderr. Returns builder and derivation where it says that one is sent off.
    pub(super) fn read(&mut self, line: &str) -> Option<(String, String)> {
        let (derivation, on) = line.trim().strip_prefix("building '")?.split_once("' on '")?;
        let derivation = derivation.strip_suffix(".drv")?.rsplit('/').next()?.split_once('-')?.1;
        let uri = on.split_once("://")?.1.split('\'').next()?;
        // Over the direct lane the builder is the program that Nix starts; over SSH, the host.
        let builder = match uri.split_once("?remote-program=") {
            Some((_, program)) => program.rsplit('/').next()?,
            None => uri.split(['?', '/']).next()?.rsplit('@').next()?,
        };
        let builder = builder.to_owned();
        self.by_builder.entry(builder.clone()).or_default().push(derivation.to_owned());
        Some((builder, derivation.to_owned()))
    }

    /// How many derivations were sent to any builder.
    pub(super) fn total(&self) -> usize {
        self.by_builder.values().map(Vec::len).sum()
    }
}

/// A path as a Nix string that is a path: quoted, since the temporary folder may have any name.
fn nix_path(path: &Path) -> String {
    let text = path.to_string_lossy().replace('\\', "\\\\").replace('"', "\\\"").replace("${", "\\${");
    format!("/. + \"{text}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twelve_in_three_levels() {
        assert_eq!(DERIVATIONS, 12);
        assert_eq!(expected_output(), "140\n");
    }

    #[test]
    fn attribution_is_read_from_nix_messages() {
        let mut attribution = Attribution::default();
        for line in [
            "building '/nix/store/rfpy0xyv4qpmk92fs9vbcr9kb7gjm2li-demo-leaf-0.drv' on 'ssh-ng://root@demo-builder-1'...",
            "building '/nix/store/rfpy0xyv4qpmk92fs9vbcr9kb7gjm2li-demo-leaf-0.drv'...",
            "building '/nix/store/kw79wb900q51al2f67af3cy02v9nqx6x-demo-top.drv' on 'ssh-ng://demo-builder-2?compress=false'...",
            "copying 0 paths...",
            "building '/nix/store/xq79wb900q51al2f67af3cy02v9nqx6x-demo-mid.drv' on 'ssh-ng://localhost?remote-program=/run/x.run/builders/demo-builder-2'...",
            "building ''",
        ] {
            attribution.read(line);
        }
        assert_eq!(attribution.total(), 3);
        assert_eq!(attribution.by_builder["demo-builder-1"], ["demo-leaf-0"]);
        assert_eq!(attribution.by_builder["demo-builder-2"], ["demo-top", "demo-mid"]);
    }
}
