use std::path::Path as FilePath;

use nixtail_proto::run::record::Outcome as Ended;
use nixtail_proto::run::{BuilderFacts, Record};

use super::*;
use crate::report::terminal::Terminal;

const SECOND: Duration = Duration::from_secs(1);
/// 2026-11-22T01:30:00Z, when the run ended.
const ENDED: i64 = 1_795_311_000;

/// A run of two minutes with everything in it: builds of all lengths and outcomes, a builder that is lost, one that comes
/// late, one that never came, an error on the way.
fn run() -> Summary {
    let began = Instant::now();
    let at = |seconds: f64| began + Duration::from_secs_f64(seconds);
    let mut record = Record::new(began);
    let facts = |system: &str, cores| BuilderFacts { system: system.to_owned(), cores };
    record.handle_ready(at(2.0), "builder-1", &facts("x86_64-linux", 4));
    record.handle_ready(at(2.5), "builder-2", &facts("x86_64-linux", 4));
    record.handle_ready(at(41.0), "builder-3", &facts("aarch64-linux", 2));
    let builds = [
        ("builder-1", 3.0, 9.5, "zlib-1.3.1", Ended::Built),
        ("builder-1", 3.2, 31.0, "openssl-3.5.1", Ended::Built),
        ("builder-2", 3.1, 4.0, "hello-2.12-src", Ended::Built),
        ("builder-2", 3.1, 48.0, "gcc-wrapper-14.3.0", Ended::Lost),
        ("builder-2", 4.4, 12.0, "xz-5.8.1", Ended::Built),
        ("builder-1", 10.0, 26.0, "curl-8.14.1", Ended::Built),
        ("builder-2", 12.5, 40.0, "sqlite-3.50.2", Ended::Failed),
        ("builder-1", 33.0, 70.0, "git-minimal-2.50.1", Ended::Built),
        ("builder-3", 43.0, 44.0, "tzdata-2026b", Ended::Built),
        ("builder-3", 43.5, 88.0, "python3-3.13.5", Ended::Built),
        ("builder-3", 43.8, 48.2, "perl-5.42.0", Ended::Abandoned),
        ("builder-1", 50.0, 96.0, "gcc-wrapper-14.3.0", Ended::Built),
        ("builder-3", 90.0, 112.0, "nix-2.34.0", Ended::Built),
    ];
    let mut events: Vec<(f64, usize, bool)> = Vec::new();
    for (number, (_, from, until, ..)) in builds.iter().enumerate() {
        events.extend([(*from, number, true), (*until, number, false)]);
    }
    events.sort_by(|left, right| left.0.total_cmp(&right.0));
    for (when, number, starts) in events {
        let (builder, .., derivation, outcome) = builds[number];
        match (starts, outcome) {
            (true, _) => record.handle_started(at(when), builder, number as u64, derivation),
            (false, Ended::Lost) => record.handle_gone(at(when), builder, "no sign of life for 30 s"),
            (false, _) => record.handle_finished(at(when), builder, number as u64, outcome),
        }
    }
    record.handle_started(at(115.0), "builder-1", 99, "nixos-system");
    record.handle_traffic("builder-1", 412 << 20, 96 << 20);
    record.handle_traffic("builder-2", 130 << 20, 3 << 20);
    record.handle_traffic("builder-3", 61 << 20, 44 << 20);
    let paths = [
        ("builder-1".to_owned(), Path::Direct { address: "192.0.2.7:41641".parse().unwrap() }, Some(0.41)),
        ("builder-3".to_owned(), Path::Derp { region: 4 }, Some(31.2)),
    ];
    let missing = |name: &str, standing: &str| Missing { name: name.to_owned(), standing: standing.to_owned() };
    let surroundings = Surroundings {
        coordinator: "coordinator".to_owned(),
        mode: "trusted-user",
        unix_now: ENDED,
        paths: &paths,
        standings: vec![missing("builder-1", "ready"), missing("builder-4", "not in the netmap")],
        errors: vec![(at(48.5), "builder-2".to_owned(), "the builder is gone: no sign of life for 30 s".to_owned())],
        errors_left_out: 0,
    };
    let mut summary = Summary::of(&record, at(121.0), surroundings);
    summary.version = "0.0.0".to_owned();
    summary
}

/// The same in a tailnet whose names are attacks.
fn hostile() -> Summary {
    let evil = "title :crit, a;b#c,\n```|<script>&\"' %% `x` [y](http://z) @root\u{1b}[31m\u{202e}";
    let mut summary = run();
    summary.coordinator = evil.to_owned();
    for builder in &mut summary.builders {
        builder.system = evil.to_owned();
        builder.name = format!("{}{evil}", builder.name);
        builder.stays.iter_mut().for_each(|stay| stay.reason = stay.until_ms.map(|_| evil.to_owned()));
    }
    for build in &mut summary.builds {
        build.builder = format!("{}{evil}", build.builder);
        build.derivation = evil.to_owned();
    }
    summary.errors.iter_mut().for_each(|error| error.message = evil.to_owned());
    summary.missing.iter_mut().for_each(|missing| missing.standing = evil.to_owned());
    summary
}

/// Compares with a file beside this one; `NIXTAIL_BLESS=1` writes it instead.
fn golden(name: &str, text: &str) {
    let path = FilePath::new(env!("CARGO_MANIFEST_DIR")).join("src/report/summary/golden").join(name);
    if std::env::var_os("NIXTAIL_BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "{name} has changed; NIXTAIL_BLESS=1 writes it anew");
}

#[test]
fn the_same_run_in_all_its_forms() {
    let summary = run();
    golden("summary.txt", &(lines(&summary, &Terminal::NONE).join("\n") + "\n"));
    golden("summary.md", &markdown(&summary));
    golden("timeline.mmd", &mermaid(&summary));
    golden("timeline.svg", &svg(&summary));
    golden("summary.json", &(serde_json::to_string_pretty(&summary).unwrap() + "\n"));
}

#[test]
fn it_is_read_as_it_was_written() {
    let summary = run();
    let read: Summary = serde_json::from_str(&serde_json::to_string(&summary).unwrap()).unwrap();
    assert_eq!(read, summary);
}

#[test]
fn a_narrow_terminal_is_kept_to() {
    for width in [20, 40, 80, 100] {
        let terminal = Terminal { width: Some(width), ..Terminal::NONE };
        for line in lines(&run(), &terminal) {
            assert!(line.chars().count() <= width, "{width}: {line:?}");
        }
    }
}

#[test]
fn names_cannot_break_out_of_a_mermaid_chart() {
    let text = mermaid(&hostile());
    for line in text.lines().skip(9) {
        let words = line.trim_start();
        let name = words.strip_prefix("section ").or_else(|| words.strip_prefix(['✓', '✗', '!', '–', '…']));
        let name = name.unwrap_or_else(|| panic!("{line:?} is neither a section nor a bar"));
        let name = name.split(" :").next().unwrap_or_default();
        assert!(!name.contains([':', ';', '#', ',', '%', '`', '<', '&', '"', '\u{1b}']), "{line:?}");
    }
    assert_eq!(text.matches("section").count(), 3);
}

#[test]
fn names_cannot_break_out_of_markdown() {
    let text = markdown(&hostile());
    assert_eq!(text.matches("```").count(), 2, "only the chart's own fence");
    assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text}");
    for line in text.lines() {
        // An escaped character is no markup, and what stands between backticks is code.
        let parts = line.split('\\').enumerate();
        let live: String = parts.map(|(index, part)| part.chars().skip(index.min(1)).collect::<String>()).collect();
        let outside: String = live.split('`').step_by(2).collect();
        let bold = outside.matches("**").count();
        assert!(!outside.contains("<script>") && !outside.contains("](") && bold.is_multiple_of(2), "{line}");
    }
    let columns = |line: &str| line.replace("\\|", "").matches('|').count();
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
    assert_eq!(rows.len(), 2 + 3 + 1);
    assert!(rows.iter().all(|row| columns(row) == 14), "{rows:#?}");
}

#[test]
fn names_cannot_break_out_of_an_svg_picture() {
    let text = svg(&hostile());
    assert!(!text.contains("<script") && !text.contains('\u{1b}') && !text.contains('\u{202e}'));
    // Every tag that is opened is closed: what a name holds is no tag.
    for tag in ["g", "text", "title", "svg", "style"] {
        let opened = text.matches(&format!("<{tag}>")).count() + text.matches(&format!("<{tag} ")).count();
        assert_eq!(opened, text.matches(&format!("</{tag}>")).count(), "{tag}");
    }
}

#[test]
fn pictures_are_bounded_and_say_what_they_leave_out() {
    let mut summary = run();
    let build = summary.builds[0].clone();
    for number in 0..20_000u64 {
        let started_ms = number * 5;
        summary.builds.push(Build { started_ms, ended_ms: started_ms + 1 + number % 7, slot: 3, ..build.clone() });
    }
    summary.builds_left_out = 1000;
    let chart = mermaid(&summary);
    // GitHub's limit, in characters.
    assert!(chart.len() < 50_000, "{}", chart.len());
    assert!(chart.contains("(20714 short ones not shown)"), "{}", chart.lines().nth(4).unwrap_or_default());
    assert!(chart.contains("✗ sqlite-3.50.2 :crit, "), "failures are shown first");
    let picture = svg(&summary);
    assert!(picture.len() < 1 << 20, "{}", picture.len());
    assert!(picture.contains("19014 builds not shown"));
    // And a job's summary may have 1 MiB.
    assert!(markdown(&summary).len() < 1 << 20);
}

#[test]
fn a_builder_that_was_told_to_end_has_not_gone_wrong() {
    let began = Instant::now();
    let mut record = Record::new(began);
    record.handle_ready(began, "a", &BuilderFacts { system: "x86_64-linux".to_owned(), cores: 1 });
    record.handle_gone(began + SECOND, "a", &Standing::Stopped.to_string());
    let summary = Summary::of(&record, began + SECOND, Surroundings::default());
    assert_eq!(lines(&summary, &Terminal::NONE).len(), 3);
    assert!(!markdown(&summary).contains("gone") && !svg(&summary).contains(" went at "));
}

#[test]
fn a_run_without_anything() {
    let record = Record::new(Instant::now());
    let summary = Summary::of(&record, record.began(), Surroundings { unix_now: ENDED, ..Surroundings::default() });
    assert_eq!(lines(&summary, &Terminal::NONE), ["0 builds on 0 builders in 0 ms"]);
    assert!(svg(&summary).contains("0 builds on 0 builders"));
    assert!(!markdown(&summary).contains("mermaid"));
}

#[test]
fn axes_are_divided_as_people_do() {
    let tick = |seconds: u64| timeline::tick(Duration::from_secs(seconds), 10);
    assert_eq!((tick(3), tick(121), tick(3600)), (SECOND / 2, 15 * SECOND, 600 * SECOND));
    assert_eq!(tick(86_400 * 40), Duration::from_secs(4 * 86_400));
}

#[test]
fn a_folder_gets_all_forms_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("a/b");
    for _ in 0..2 {
        write(&inside, &run()).unwrap();
    }
    let mut names: Vec<_> =
        std::fs::read_dir(&inside).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["summary.json", "summary.md", "timeline.mmd", "timeline.svg"]);
    let json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(inside.join("summary.json")).unwrap()).unwrap();
    assert_eq!(json["schema"], 1);
    assert_eq!((&json["totals"]["lost"], &json["totals"]["abandoned"]), (&1.into(), &1.into()));
    std::fs::write(folder.path().join("file"), "").unwrap();
    let error = write(&folder.path().join("file"), &run()).unwrap_err();
    assert!(error.to_string().contains("file: "), "{error}");
}
