//! What the documentation shows is what there is: files, policies, errors' words, exit codes, links.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what goes wrong here fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nixtail::report::Exit;

/// How the documents name our own Action where they use it, up to the commit.
const ACTION: &str = "nixtail/nixtail";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files in one folder with one extension, in order.
fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = entries.filter(|path| path.extension().is_some_and(|is| is == extension)).collect();
    found.sort();
    found
}

/// Every document for people, by its name in the tree.
fn documents() -> BTreeMap<String, String> {
    let paths = files("", "md").into_iter().chain(files("docs", "md"));
    let name = |path: &Path| path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
    paths.map(|path| (name(&path), read(&path))).collect()
}

/// A fenced block, and the file that the comment above it says it is.
struct Block {
    file: Option<String>,
    language: String,
    text: String,
    line: usize,
}

fn blocks(document: &str) -> Vec<Block> {
    let (mut found, mut open, mut above): (Vec<Block>, Option<Block>, &str) = (Vec::new(), None, "");
    for (index, line) in document.lines().enumerate() {
        let fence = line.trim_start().strip_prefix("```");
        match (&mut open, fence) {
            (None, Some(language)) => {
                let file = above.strip_prefix("<!-- the file ").and_then(|rest| rest.strip_suffix(" -->"));
                let (file, language) = (file.map(str::to_owned), language.to_owned());
                open = Some(Block { file, language, text: String::new(), line: index + 1 });
            }
            (Some(_), Some(_)) => found.extend(open.take()),
            (Some(block), None) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, None) => {}
        }
        above = line.trim();
    }
    assert!(open.is_none(), "a block isn't closed");
    found
}

#[test]
fn what_a_document_shows_of_a_file_is_that_file() {
    let mut shown = BTreeSet::new();
    for (name, document) in documents() {
        for block in blocks(&document) {
            let place = format!("{name}:{}", block.line);
            if let Some(file) = block.file {
                assert!(block.text == read(&root().join(&file)), "{place} isn't {file} any more; run scripts/docs");
                shown.insert(root().join(file));
            } else {
                let is_workflow = block.language.starts_with('y') && block.text.contains("jobs:");
                assert!(!is_workflow, "{place}: a workflow that is no file, so that nothing lints it");
            }
        }
    }
    for workflow in files("docs/workflows", "yml") {
        assert!(shown.contains(&workflow), "no document shows {}", workflow.display());
    }
}

/// All workflows, and our own Action: whatever has `uses:` in it.
fn workflows() -> Vec<PathBuf> {
    let folders = ["docs/workflows", ".github/workflows"].map(|folder| files(folder, "yml"));
    folders.concat().into_iter().chain([root().join("action.yml")]).collect()
}

#[test]
fn every_action_is_pinned_to_one_commit() {
    let mut pins = BTreeMap::new();
    for (file, text) in workflows().iter().map(|path| (path.display(), read(path))) {
        for used in text.lines().filter_map(|line| line.trim_start_matches([' ', '-']).strip_prefix("uses: ")) {
            // The Action's other half, at the same commit.
            if used.starts_with("$/") {
                continue;
            }
            let (action, pin) = used.split_once('@').unwrap_or_else(|| panic!("{file}: {used}"));
            let (commit, version) = pin.split_once(" # v").unwrap_or_else(|| panic!("{file}: {used}: no version"));
            assert!(commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit()), "{file}: {used}");
            assert!(!version.is_empty(), "{file}: {used}");
            // Two actions of one repository are of one commit, too.
            let repository = action.splitn(3, '/').take(2).collect::<Vec<_>>().join("/");
            let known = pins.entry(repository).or_insert_with(|| pin.to_owned());
            assert_eq!(known, pin, "{file}: {action} is pinned elsewhere, too");
        }
    }
    assert!(pins.contains_key(ACTION) && pins.len() > 4, "{pins:?}");
}

/// The names that stand one step further in than `key`'s line in a YAML file of ours, up to the next such line.
fn names_below(text: &str, key: &str) -> BTreeSet<String> {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut lines = text.lines().skip_while(|line| line.trim_end() != key);
    let outer = lines.next().map(indent).unwrap_or_else(|| panic!("no {key:?}"));
    let inner: Vec<&str> = lines.take_while(|line| line.trim().is_empty() || indent(line) > outer).collect();
    let step = inner.iter().find(|line| !line.trim().is_empty()).map_or(0, |line| indent(line));
    let names = inner.iter().filter(|line| indent(line) == step && !line.trim_start().starts_with('#'));
    names.filter_map(|line| line.trim().split_once(':')).map(|(name, _)| name.to_owned()).collect()
}

#[test]
fn the_inputs_and_outputs_that_are_explained_are_those_that_there_are() {
    let action = read(&root().join("action.yml"));
    let document = read(&root().join("docs/action.md"));
    for (heading, key) in [("## Inputs", "inputs:"), ("## Outputs", "outputs:")] {
        let section = document.split_once(heading).unwrap().1.split_once("\n## ").unwrap().0;
        let cells = section.lines().filter_map(|line| line.strip_prefix("| `")?.split(" |").next());
        let explained: BTreeSet<String> =
            cells.flat_map(|cell| cell.split(", ")).map(|name| name.trim_matches('`').to_owned()).collect();
        assert_eq!(explained, names_below(&action, key), "{heading} of docs/action.md");
    }
}

#[test]
fn the_workflows_that_are_shown_give_inputs_that_there_are() {
    let inputs = names_below(&read(&root().join("action.yml")), "inputs:");
    for (file, text) in files("docs/workflows", "yml").iter().map(|path| (path.display(), read(path))) {
        let ours = text.split("uses: ").skip(1).filter(|step| step.starts_with(ACTION));
        // What belongs to the step: up to the next one, or the next job.
        for step in ours.map(|step| step.split("\n      - ").next().unwrap().split("\n\n").next().unwrap()) {
            let given = names_below(step, "        with:");
            assert!(given.is_subset(&inputs), "{file}: {:?}", given.difference(&inputs));
        }
    }
}

#[test]
fn links_lead_somewhere() {
    let documents = documents();
    let anchors = |document: &str| -> BTreeSet<String> {
        let headings = document.lines().filter_map(|line| line.strip_prefix('#'));
        headings.map(|line| anchor(line.trim_start_matches('#').trim())).collect()
    };
    for (name, document) in &documents {
        for (_, rest) in document.match_indices("](").map(|(at, _)| document.split_at(at + 2)) {
            let target = rest.split([')', '\n']).next().unwrap();
            if target.starts_with("http") {
                continue;
            }
            let (file, fragment) = target.split_once('#').unwrap_or((target, ""));
            let folder = root().join(name).parent().unwrap().to_owned();
            let path = if file.is_empty() { root().join(name) } else { folder.join(file) };
            assert!(path.exists(), "{name} links to {target}, which isn't there");
            assert!(fragment.is_empty() || anchors(&read(&path)).contains(fragment), "{name} links to {target}");
        }
    }
}

/// The anchor that GitHub gives to a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().replace(|c: char| !(c.is_alphanumeric() || c == ' ' || c == '-' || c == '_'), "");
    kept.replace(' ', "-")
}

/// All that this program and its launcher can say: their sources' string literals, each broken line put together.
fn words() -> String {
    let mut all = String::new();
    let mut folders = vec![root().join("src"), root().join("proto/src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|is| is == "rs") {
                all.push_str(&read(&entry));
            }
        }
    }
    all.extend(files("agent", "js").iter().map(|script| read(script).replace("\\'", "'")));
    // A literal goes on in the next line behind a backslash, and that line's blanks don't count.
    let mut pieces = all.split("\\\n");
    let first = pieces.next().unwrap_or_default().to_owned();
    pieces.fold(first, |joined, piece| joined + piece.trim_start()).replace("\\\"", "\"")
}

#[test]
fn the_errors_that_are_explained_exist() {
    let (words, document) = (words(), read(&root().join("docs/troubleshooting.md")));
    let mut explained = 0;
    for row in document.lines().filter_map(|line| line.strip_prefix("| `")) {
        let quoted = row.split('`').next().unwrap();
        for piece in
            quoted.split('…').map(|piece| piece.trim_matches([' ', '(', ')', ';'])).filter(|piece| piece.len() > 2)
        {
            assert!(words.contains(piece), "nothing in the sources says {piece:?} (of `{quoted}`)");
        }
        explained += 1;
    }
    assert!(explained > 40, "{explained}");
}

#[test]
fn every_exit_code_has_a_section() {
    let document = read(&root().join("docs/troubleshooting.md"));
    let exits = [
        Exit::General,
        Exit::Usage,
        Exit::Unavailable,
        Exit::TryAgain,
        Exit::Refused,
        Exit::Configuration,
        Exit::Timeout,
        Exit::NotExecutable,
        Exit::NotFound,
    ];
    let headings: Vec<&str> = document.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    for code in exits.map(|exit| exit.code().to_string()) {
        let is_about = |heading: &&&str| heading.split([' ', ':']).any(|word| word == code);
        assert!(headings.iter().any(|heading| is_about(&heading)), "no section about exit code {code}");
    }
}

#[test]
fn a_releases_checksums_are_a_table_that_the_launcher_takes() {
    let assets = tempfile::tempdir().unwrap();
    let launcher = read(&root().join("agent/asset.js"));
    let targets: Vec<&str> =
        launcher.split('\'').filter(|word| word.ends_with("-linux-musl") || word.ends_with("-apple-darwin")).collect();
    assert_eq!(targets.len(), 4, "{targets:?}");
    let table = || {
        let script = root().join("scripts/checksums");
        Command::new(script).arg("1.2.3").arg(assets.path()).output().unwrap()
    };
    for target in &targets {
        assert!(!table().status.success(), "{target} is missing");
        fs::write(assets.path().join(format!("nixtail-{target}")), target).unwrap();
    }
    let table: serde_json::Value = serde_json::from_slice(&table().stdout).unwrap();
    let committed: serde_json::Value = serde_json::from_str(&read(&root().join("agent/checksums.json"))).unwrap();
    let keys = |table: &serde_json::Value| -> Vec<String> { table.as_object().unwrap().keys().cloned().collect() };
    assert_eq!((keys(&table), &table["schema"]), (keys(&committed), &committed["schema"]));
    assert_eq!(table["tag"], "binaries-v1.2.3");
    for target in targets {
        let sum = table["assets"][format!("nixtail-{target}")].as_str().unwrap();
        assert!(sum.len() == 64 && sum.bytes().all(|byte| byte.is_ascii_hexdigit()), "{target}: {sum}");
    }
}

#[test]
#[cfg(feature = "devnet")]
fn the_policies_that_the_documents_show_are_accepted() {
    let original = root().join("tests/devnet/policies/original.hujson");
    for policy in files("docs", "json").into_iter().chain([original]) {
        let mut devnet = Command::new(env!("CARGO_BIN_EXE_nixtail"))
            .args(["devnet", "--policy"])
            .arg(&policy)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It says this line once it serves the policy, and ends without one where it can't.
        let mut line = String::new();
        BufReader::new(devnet.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let _ = devnet.kill();
        let said = devnet.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&said.stderr);
        assert!(line.starts_with("ready TS_CONTROL_URL="), "{}: {said}", policy.display());
    }
}
