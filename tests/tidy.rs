//! Style as a test: floors, lengths, and words that have no place here.

use std::{fs, path::Path};

use carillon::base::crash_point;

/// Lines of a file, and of a function.
const FILE_LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;

/// Which floors of the root crate a floor may import. `main` and the composition
/// root (`node`, `cli`) may import all.
const FLOORS: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("config", &[]),
    ("queue", &["base"]),
    ("route", &["base", "queue"]),
    ("longterm", &["base", "queue"]),
    ("service", &["base", "config", "queue", "route", "longterm"]),
    ("edge", &["base", "config", "queue", "route", "service"]),
    ("api", &["base", "config", "queue", "service"]),
    ("admin", &["base", "config", "service"]),
];

/// What only one door may name.
const DOORS: &[(&str, &str)] = &[
    ("fjall::", "src/queue/store/embedded.rs"),
    ("tokio_postgres", "src/longterm/postgres"),
    ("rmqtt_codec::", "wire/src/mqtt"),
    ("tokio::spawn(", "src/base/tasks.rs"),
    ("SystemTime::now", "src/base/clock.rs"),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(dir: &str) -> Vec<(String, String)> {
    let (mut files, mut dirs) = (Vec::new(), vec![root().join(dir)]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") && !is_generated(&path) {
                let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
                files.push((name, fs::read_to_string(path).unwrap()));
            }
        }
    }
    assert!(!files.is_empty(), "{dir} has sources");
    files
}

fn is_generated(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "gen")
}

fn all_sources() -> Vec<(String, String)> {
    ["src", "wire", "sdk", "loadtest", "tests", "fuzz"].into_iter().flat_map(sources).collect()
}

fn fail_if_any(offences: Vec<String>) {
    assert!(offences.is_empty(), "\n{}", offences.join("\n"));
}

#[test]
fn floors_import_downward_only() {
    let mut offences = Vec::new();
    let mut seen = 0;
    for (name, text) in sources("src") {
        let floor = floor_of(&name);
        let Some((_, allowed)) = FLOORS.iter().find(|(one, _)| *one == floor) else {
            continue;
        };
        for (target, line) in crate_paths(&text) {
            seen += 1;
            let is_floor = FLOORS.iter().any(|(one, _)| *one == target) || target == "node";
            if is_floor && target != floor && !allowed.contains(&target.as_str()) {
                offences.push(format!("{name}:{line}: {floor} must not know {target}"));
            }
        }
    }
    assert!(seen > 50, "the imports were found");
    fail_if_any(offences);
}

fn floor_of(name: &str) -> String {
    let below = name.trim_start_matches("src/");
    below.split(['/', '.']).next().unwrap_or_default().to_owned()
}

/// Every `crate::x`, also inside `use crate::{x, y::z}`, with its line.
fn crate_paths(text: &str) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let line = text[..at].lines().count().max(1);
        let rest = &text[at + "crate::".len()..];
        let word = |text: &str| -> String {
            text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
        };
        match rest.strip_prefix('{') {
            None => found.push((word(rest), line)),
            Some(group) => {
                found.extend(top_level_names(group).into_iter().map(|name| (word(&name), line)))
            }
        }
    }
    found
}

fn top_level_names(group: &str) -> Vec<String> {
    let (mut names, mut name, mut depth) = (Vec::new(), String::new(), 0);
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => names.push(std::mem::take(&mut name)),
            c if depth == 0 && !c.is_whitespace() => name.push(c),
            _ => {}
        }
    }
    names.push(name);
    names
}

#[test]
fn files_and_functions_stay_readable() {
    let mut offences = Vec::new();
    for (name, text) in all_sources() {
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            offences.push(format!("{name}: {lines} lines, at most {FILE_LINES_MAX}"));
        }
        for (function, line, length) in functions(&text) {
            if length > FUNCTION_LINES_MAX {
                offences.push(format!(
                    "{name}:{line}: `{function}` has {length} lines, at most {FUNCTION_LINES_MAX}"
                ));
            }
        }
    }
    fail_if_any(offences);
}

/// Name, first line and length of each function of rustfmt's layout: from the
/// line with `fn` to the closing brace at the same indent.
fn functions(text: &str) -> Vec<(String, usize, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let Some((before, after)) = code.split_once("fn ") else {
            continue;
        };
        let is_head = before.split_whitespace().all(|word| {
            word.starts_with("pub") || ["async", "const", "unsafe", "in"].contains(&word)
        });
        if !is_head || code.starts_with("//") {
            continue;
        }
        let end = format!("{}}}", &line[..line.len() - code.len()]);
        let length = lines[at..].iter().position(|line| **line == end);
        let is_declaration = lines[at..].iter().take(12).any(|l| l.ends_with(';'))
            && length.is_none_or(|length| length > 200);
        if let (Some(length), false) = (length, is_declaration) {
            let name = after.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            found.push((name, at + 1, length + 1));
        }
    }
    found
}

#[test]
fn each_door_is_the_only_one() {
    let mut offences = Vec::new();
    for (name, text) in ["src", "wire/src"].into_iter().flat_map(sources) {
        for (word, door) in DOORS {
            if text.contains(word) && !name.starts_with(door) {
                offences.push(format!("{name}: `{word}` belongs to {door}"));
            }
        }
    }
    fail_if_any(offences);
}

#[test]
fn every_module_says_what_it_is_for() {
    let lacks = |(name, text): &(String, String)| {
        (!text.starts_with("//!")).then(|| format!("{name}: no module header"))
    };
    fail_if_any(all_sources().iter().filter_map(lacks).collect());
}

#[test]
fn unsafe_code_is_forbidden_everywhere() {
    for manifest in ["Cargo.toml", "wire/Cargo.toml", "sdk/Cargo.toml", "loadtest/Cargo.toml"] {
        let text = fs::read_to_string(root().join(manifest)).unwrap();
        assert!(text.contains("[lints]\nworkspace = true"), "{manifest} inherits the lints");
    }
    let text = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    assert!(text.contains("unsafe_code = \"forbid\""));
}

#[test]
fn every_crash_point_is_placed_and_listed() {
    let mut placed = Vec::new();
    for (name, text) in sources("src") {
        if name.ends_with("crash_point.rs") {
            continue;
        }
        for (at, _) in text.match_indices("crash_point!(\"") {
            let rest = &text[at + "crash_point!(\"".len()..];
            placed.push(rest.split('"').next().unwrap().to_owned());
        }
    }
    placed.sort();
    let all = [crash_point::ALL, crash_point::OF_KEYS, crash_point::OF_UPLOADS].concat();
    let mut listed: Vec<String> = all.into_iter().map(str::to_owned).collect();
    listed.sort();
    assert_eq!(placed, listed);
}

/// Statements of the design references about synchronisation, and how many there are of each kind.
const STATEMENTS: [(&str, u32); 3] = [("S", 30), ("I-", 16), ("W-", 11)];

#[test]
fn the_statements_about_sync_have_the_tests_that_their_table_names() {
    let page = fs::read_to_string(root().join("docs/SYNC.md")).unwrap();
    let (_, page) = page.split_once("## Statements and their tests").unwrap();
    let sources = all_sources();
    let is_test = |start: &str| {
        let start = format!("fn {start}");
        sources.iter().any(|(_, text)| text.contains(&start))
    };
    let mut offences = Vec::new();
    let quoted = page.split('`').skip(1).step_by(2);
    for name in quoted.clone().filter(|name| is_test_name(name)) {
        let start = name.rsplit("::").next().unwrap_or(name).trim_end_matches(['*', '…']);
        if !is_test(start) {
            offences.push(format!("docs/SYNC.md: no test `{name}`"));
        }
    }
    for file in quoted.filter(|name| name.contains("tests/") && !name.contains('*')) {
        if !root().join(file).exists() {
            offences.push(format!("docs/SYNC.md: no file `{file}`"));
        }
    }
    let words: Vec<&str> =
        page.split(|c: char| !c.is_alphanumeric() && c != '-' && c != '_').collect();
    for (kind, count) in STATEMENTS {
        let missing = (1..=count).filter(|n| !words.contains(&format!("{kind}{n}").as_str()));
        offences.extend(missing.map(|n| format!("docs/SYNC.md: nothing about {kind}{n}")));
    }
    fail_if_any(offences);
}

/// `s9_*`, `queue::plan::s5_*`, `the_whole_name_of_one`, `the_begin_…`.
fn is_test_name(text: &str) -> bool {
    let name = text.trim_end_matches(['*', '…']);
    let is_path =
        name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_:".contains(c));
    is_path && (name != text || name.matches('_').count() > 2)
}

#[test]
fn the_search_for_functions_finds_them() {
    let text = "impl X {\n    pub async fn one(\n        self,\n    ) {\n        x;\n    }\n}\nfn two() {}\n";
    assert_eq!(functions(text), vec![("one".to_owned(), 2, 5)]);
    let paths = crate_paths("use crate::{base::{a, b}, queue::c};\ncrate::edge::x()");
    let names: Vec<&str> = paths.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["base", "queue", "edge"]);
}
