//! Where and with what it was measured.

use std::{fs, path::Path};

use crate::programs::{Tools, said};

#[derive(Debug)]
pub struct Machine {
    /// What, and how it is called here.
    pub lines: Vec<(&'static str, String)>,
    /// CPU 0 and CPU 1 are two threads of one core.
    shared_core: bool,
}

impl Machine {
    pub fn look(tools: &Tools, arguments: &[String]) -> Self {
        let options = if arguments.is_empty() { String::new() } else { format!(" -- {}", arguments.join(" ")) };
        let second = jiff::Timestamp::now().as_second();
        let date = jiff::Timestamp::from_second(second).map(|now| now.to_string()).unwrap_or_default();
        let siblings = read("/sys/devices/system/cpu/cpu0/topology/thread_siblings_list");
        let lines = vec![
            ("date", date),
            ("command", format!("`cargo bench --bench peers{options}`")),
            ("CPU", processor()),
            ("kernel", format!("Linux {}", read("/proc/sys/kernel/osrelease"))),
            ("sluicegate", format!("{} ({})", env!("CARGO_PKG_VERSION"), revision())),
            ("haproxy", haproxy(tools)),
            ("nginx", nginx(tools)),
            ("wrk", word_after(&said(&tools.wrk, "-v"), "wrk ")),
            ("openssl", first_line(&said(Path::new("openssl"), "version"))),
        ];
        Self { lines, shared_core: matches!(siblings.as_str(), "0-1" | "0,1") }
    }

    /// Says what will make the figures worse.
    pub fn warn(&self) {
        if self.shared_core {
            eprintln!("warning: CPU 0 and CPU 1 share a core here; proxies and generators will disturb each other");
        }
    }
}

fn processor() -> String {
    let info = read("/proc/cpuinfo");
    let value = |key: &str| {
        let line = info.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let name = value("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let count = info.lines().filter(|line| line.starts_with("processor")).count();
    let family = match (value("cpu family"), value("model\t")) {
        (Some(family), Some(model)) => format!(" (family {family}, model {model})"),
        _ => String::new(),
    };
    let guest = value("flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor"));
    format!("{name}{family}, {count} CPUs{}", if guest { ", virtual machine" } else { "" })
}

/// The commit, with `-dirty` behind it when files differ from it.
fn revision() -> String {
    let described = std::process::Command::new("git").args(["describe", "--tags", "--always", "--dirty"]).output();
    let text = described.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    if text.is_empty() { "not from git".to_owned() } else { text }
}

/// With the OpenSSL it runs on, which is most of its TLS.
fn haproxy(tools: &Tools) -> String {
    let text = said(&tools.haproxy, "-vv");
    with_library(word_after(&text, "version "), &word_after(&text, "Running on OpenSSL version : OpenSSL "))
}

fn nginx(tools: &Tools) -> String {
    let text = said(&tools.nginx, "-V");
    // Said only when they differ.
    let running = word_after(&text, "(running with OpenSSL ");
    let library = if running.is_empty() { word_after(&text, "built with OpenSSL ") } else { running };
    with_library(word_after(&text, "nginx/"), &library)
}

fn with_library(version: String, library: &str) -> String {
    if library.is_empty() { version } else { format!("{version}, OpenSSL {library}") }
}

/// The word that follows this text.
fn word_after(text: &str, before: &str) -> String {
    let rest = text.split_once(before).map_or("", |(_, rest)| rest);
    rest.split_whitespace().next().unwrap_or_default().to_owned()
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}
