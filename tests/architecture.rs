//! The house rules that a compiler does not check: who imports whom, how long things are, where unsafe stands.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

const MAX_FILE: usize = 400;
const MAX_FUNCTION: usize = 70;

/// Modules of floor 0, which know no runtime, no I/O, no clock and no atomics.
const FLOOR_0: [&str; 10] =
    ["random", "moment", "address", "cidr", "firewall", "balance", "proxy_protocol", "outcome", "threshold", "config"];

#[test]
fn a_module_imports_only_from_the_lines_above_its_own() {
    let order = modules();
    let place: HashMap<_, _> = order.iter().enumerate().map(|(place, name)| (name.as_str(), place)).collect();
    let mut wrong = Vec::new();
    let mut seen = 0;
    for file in sources() {
        let Some(module) = module_of(&file) else { continue };
        let own = place.get(module.as_str()).unwrap_or_else(|| panic!("{module} is not in lib.rs"));
        for imported in imports(&read(&file)) {
            seen += 1;
            match place.get(imported.as_str()) {
                Some(other) if other <= own => {}
                Some(_) => wrong.push(format!("{}: {module} imports {imported}, which is above it", file.display())),
                None => wrong.push(format!("{}: {imported} is no module of lib.rs", file.display())),
            }
        }
    }
    assert!(seen > 100, "only {seen} imports found: the reader of this test is broken");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_and_functions_keep_their_length() {
    let mut wrong = Vec::new();
    let mut functions = 0;
    for file in sources().into_iter().chain(rust_files("tests")).chain(rust_files("benches")) {
        let text = read(&file);
        let lines: Vec<_> = text.lines().collect();
        if lines.len() > MAX_FILE {
            wrong.push(format!("{}: {} lines, {MAX_FILE} are allowed", file.display(), lines.len()));
        }
        for (start, length) in lengths_of_functions(&lines) {
            functions += 1;
            if length > MAX_FUNCTION {
                wrong.push(format!("{}:{}: a function of {length} lines", file.display(), start + 1));
            }
        }
    }
    assert!(functions > 300, "only {functions} functions found: the reader of this test is broken");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn unsafe_stands_only_in_sys_and_says_why() {
    let mut blocks = 0;
    for file in sources() {
        let text = read(&file);
        let lines: Vec<_> = text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if !["unsafe {", "unsafe fn", "unsafe impl"].iter().any(|word| code.contains(word)) {
                continue;
            }
            blocks += 1;
            assert!(file.starts_with("src/sys"), "{}:{}: unsafe", file.display(), number + 1);
            let above = &lines[number.saturating_sub(3)..number];
            let why = above.iter().any(|line| line.trim_start().starts_with("// SAFETY:"));
            assert!(why, "{}:{}: unsafe without a SAFETY line", file.display(), number + 1);
        }
    }
    assert!(blocks > 0, "the reader of this test is broken");
}

#[test]
fn floor_0_knows_no_runtime_no_io_no_clock_and_no_atomics() {
    const FOREIGN: [&str; 9] = [
        "tokio::",
        "std::fs",
        "fs::read",
        "TcpStream",
        "TcpListener",
        "sync::atomic",
        "Instant::now",
        "SystemTime::now",
        "thread_rng",
    ];
    for file in sources() {
        let Some(module) = module_of(&file) else { continue };
        if !FLOOR_0.contains(&module.as_str()) {
            continue;
        }
        let text = read(&file);
        // Tests may read the example files.
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let is_test = file.file_stem().is_some_and(|stem| stem == "tests");
        for word in FOREIGN {
            assert!(is_test || !code.contains(word), "{}: {word}", file.display());
        }
    }
}

#[test]
fn only_one_module_names_rustls_pemfile() {
    for file in sources() {
        let named = read(&file).contains("rustls_pemfile");
        assert_eq!(named, file == Path::new("src/tls/pem.rs"), "{}", file.display());
    }
}

#[test]
fn no_test_is_ignored_and_nothing_is_left_to_do() {
    // Written in two parts, so that this file does not find itself.
    let words = [["#[ign", "ore"], ["to", "do!("], ["unimple", "mented!("], ["FIX", "ME"]].map(|parts| parts.concat());
    for file in sources().into_iter().chain(rust_files("tests")) {
        let text = read(&file);
        for word in &words {
            assert!(!text.contains(word), "{}: {word}", file.display());
        }
    }
}

/// The modules of `lib.rs`, from the ground up.
fn modules() -> Vec<String> {
    let text = read(Path::new("src/lib.rs"));
    let names = text.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    names.map(str::to_owned).collect()
}

/// `src/tls/pem.rs` and `src/tls/mod.rs` belong to `tls`; `lib.rs` and `main.rs` to nobody.
fn module_of(file: &Path) -> Option<String> {
    let first = file.strip_prefix("src").ok()?.components().next()?.as_os_str().to_str()?;
    let module = first.strip_suffix(".rs").unwrap_or(first);
    (!["lib", "main"].contains(&module)).then(|| module.to_owned())
}

/// The first name behind each `crate::`, in `use crate::{a, b::c}` and in `crate::a::b` alike.
fn imports(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let code: String =
        text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(list) => found.extend(heads(list)),
            None => found.push(word(rest)),
        }
    }
    found
}

/// The first name of each entry of a braced list, whose opening brace is already read.
fn heads(list: &str) -> Vec<String> {
    let (mut depth, mut entry, mut found) = (0, true, Vec::new());
    for (at, character) in list.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => entry = true,
            c if entry && (c.is_alphabetic() || c == '_') => {
                found.push(word(&list[at..]));
                entry = false;
            }
            _ => {}
        }
    }
    found
}

fn word(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// Line and length of each function; its end is the brace in the column where it began.
fn lengths_of_functions(lines: &[&str]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let indent = line.len() - code.len();
        let is_function = ["fn ", "pub fn ", "async fn ", "pub async fn ", "const fn ", "pub const fn ", "unsafe fn "]
            .iter()
            .any(|word| code.starts_with(word))
            || (code.starts_with("pub(") && code.contains(" fn "));
        if !is_function || code.ends_with(';') || code.ends_with('}') {
            continue;
        }
        let end = format!("{}}}", " ".repeat(indent));
        if let Some(length) = lines[start..].iter().position(|line| *line == end) {
            found.push((start, length + 1));
        }
    }
    found
}

fn sources() -> Vec<PathBuf> {
    rust_files("src")
}

fn rust_files(directory: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![PathBuf::from(directory)];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display())) {
            let path = entry.expect("a directory entry").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
