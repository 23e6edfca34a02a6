//! What operators read when a configuration is wrong, compared to the letter. `SLUICEGATE_BLESS=1` rewrites it.

#![allow(clippy::unwrap_used, reason = "a test that cannot read its files has failed")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use proptest::prelude::*;
use sluicegate::{
    config::{
        self, Diagnostic,
        code::{CODES, Stage},
        diagnostic::{render, to_json},
    },
    load::{self, Text},
    tls::acceptor,
};

fn toml_files(directory: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let mut files: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    files.sort();
    files
}

fn diagnostics(text: &str) -> Vec<Diagnostic> {
    match config::parse(text, Path::new("/etc/sluicegate")) {
        Ok((_, warnings)) => warnings,
        Err(errors) => errors,
    }
}

#[test]
fn each_mistake_is_told_as_written_down() {
    each_case_is_as_written_down("tests/diagnostics/cases", |_, text| {
        render(&diagnostics(text), Path::new("sluicegate.toml"), text, false)
    });
}

/// What only shows when the files that are named are read.
#[test]
fn each_doubt_about_files_is_told_as_written_down() {
    each_case_is_as_written_down("tests/diagnostics/files", |case, text| {
        let path = Path::new("tests/diagnostics/files").join(case.file_name().unwrap());
        let source = Text { path: path.clone(), text: text.to_owned() };
        let found = load::load(&source, &acceptor::provider()).map_or_else(|errors| errors, |loaded| loaded.warnings);
        render(&found, &path, text, false)
    });
}

fn each_case_is_as_written_down(directory: &str, told: impl Fn(&Path, &str) -> String) {
    let bless = std::env::var_os("SLUICEGATE_BLESS").is_some();
    let mut wrong = Vec::new();
    for case in toml_files(directory) {
        let text = fs::read_to_string(&case).unwrap();
        let told = told(&case, &text);
        let expected = case.with_extension("stderr");
        if bless {
            fs::write(&expected, told).unwrap();
        } else if fs::read_to_string(&expected).unwrap_or_default() != told {
            wrong.push(format!("{}:\n{told}", case.display()));
        }
    }
    assert!(wrong.is_empty(), "not as written down:\n{}", wrong.join("\n"));
}

#[test]
fn o6_an_inline_password_is_in_no_diagnostic() {
    let file = |check: &str| {
        format!(
            "[listener.a]\nbind = \"0.0.0.0:1\"\npool = \"p\"\n[pool.p]\nbackends = \"192.0.2.1:80\"\n\
             check = {{ type = \"mysql\", {check} }}\n"
        )
    };
    for check in [
        "user = \"u\", password = \"hunter2\", evry = \"1s\"",
        "user = \"u\", pasword = \"hunter2\"",
        "password = \"hunter2\"",
        "user = 1, \"password\" = 'hunter2'",
        "user = \"u\", password = hunter2",
        "user = \"u\", password = [\"hunter2\"]",
        "user = \"u\", password = { value = \"hunter2\" }",
        "user = \"u\", password = \"hunter2",
        "user = \"u\", password = \"a\"hunter2\"",
        "user = \"u\", password: \"hunter2\"",
        "user = \"u\", password \"hunter2\"",
        "user = \"u\", password = \"x\", password = \"hunter2\"",
        "user = \"u\", password = \"\\qhunter2\"",
    ] {
        let text = file(check);
        let found = diagnostics(&text);
        assert!(!found.is_empty(), "{check}");
        let told = render(&found, Path::new("sluicegate.toml"), &text, true);
        let json = to_json(&found, Path::new("sluicegate.toml"), &text).to_string();
        assert!(!told.contains("hunter2") && !json.contains("hunter2"), "{check}\n{told}\n{json}");
    }
}

#[test]
fn each_code_of_the_text_has_a_case() {
    let told: BTreeSet<_> = toml_files("tests/diagnostics/cases")
        .iter()
        .flat_map(|case| diagnostics(&fs::read_to_string(case).unwrap()))
        .map(|diagnostic| diagnostic.code)
        .collect();
    let known: BTreeSet<_> = CODES.iter().filter(|code| code.stage == Stage::Text).map(|code| code.id).collect();
    assert_eq!(told, known);
}

#[test]
fn every_file_of_the_config_directory_parses() {
    let files = toml_files("config");
    assert!(files.len() >= 3, "{files:?}");
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let base = file.parent().unwrap();
        match config::parse(&text, base) {
            Ok((_, warnings)) => assert!(warnings.is_empty(), "{}", render(&warnings, &file, &text, false)),
            Err(errors) => panic!("{}", render(&errors, &file, &text, false)),
        }
    }
}

#[test]
fn hostile_text_gets_an_answer() {
    let inline = format!("a={}1{}", format!("{{{}b=", "a.".repeat(70)).repeat(79), "}".repeat(79));
    let many_keys = (0..20_000).map(|n| format!("key{n} = {n}")).collect::<Vec<_>>().join("\n");
    let many_pools =
        (0..2_000).map(|n| format!("[listener.l{n}]\npool = \"x{n}\"\n[pool.p{n}]\n")).collect::<Vec<_>>().concat();
    for text in [
        format!("a={}", "[".repeat(100_000)),
        format!("a={}{}", "[".repeat(100_000), "]".repeat(100_000)),
        format!("a={}", "{a=".repeat(100_000)),
        format!("[{}a]", "a.".repeat(100_000)),
        format!("[pool.{}]", "ä\u{1b}".repeat(100_000)),
        format!("[pool.\"{}\"]", "ä".repeat(100_000)),
        format!("[listener.a]\nbind = [{}]", "\"a:b\",".repeat(100_000)),
        "= \n".repeat(100_000),
        "\0".repeat(100_000),
        "\r".repeat(100_000),
        "\u{feff}".to_owned(),
        inline,
        many_keys,
        many_pools,
    ] {
        let found = diagnostics(&text);
        assert!(!found.is_empty());
        let told = render(&found, Path::new("sluicegate.toml"), &text, true);
        assert!(told.len() < 200_000, "{} bytes", told.len());
        assert!(to_json(&found, Path::new("sluicegate.toml"), &text).is_array());
    }
}

/// Valid files with a few places replaced.
fn mutated() -> impl Strategy<Value = String> {
    let files: Vec<String> = toml_files("config").iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    let piece = prop_oneof![
        any::<char>().prop_map(String::from),
        prop::sample::select(vec![
            "", "\"", "[", "]", "{", "}", "=", "\n", "\r\n", ",", ".", "0", "-1", "1.5", "ä", "\0"
        ])
        .prop_map(str::to_owned),
    ];
    let edits = prop::collection::vec((any::<prop::sample::Index>(), 0..8_usize, piece), 1..6);
    (prop::sample::select(files), edits).prop_map(|(text, edits)| {
        let mut chars: Vec<char> = text.chars().collect();
        for (at, removed, piece) in edits {
            let at = at.index(chars.len());
            let end = chars.len().min(at + removed);
            chars.splice(at..end, piece.chars());
            chars.push(' ');
        }
        chars.into_iter().collect()
    })
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in prop_oneof![any::<String>(), "(?s).{0,200}", mutated()]) {
        let found = diagnostics(&text);
        let told = render(&found, Path::new("sluicegate.toml"), &text, false);
        prop_assert_eq!(told.is_empty(), found.is_empty());
        let json = to_json(&found, Path::new("sluicegate.toml"), &text);
        prop_assert_eq!(json.as_array().map(Vec::len), Some(found.len()));
    }
}
