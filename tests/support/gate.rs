//! The product under test: a configuration in a temporary directory and the binary that serves it.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    sync::LazyLock,
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

use super::{Authority, Metrics, Process, SOON, Variant, certificates::Leaf, process, programs, wait_for, wait_until};

static FOOBAR: LazyLock<Leaf> = LazyLock::new(|| Authority::leaf(&["foobar.com", "www.foobar.com", "localhost"]));

/// A gate that is not started yet.
#[derive(Debug)]
pub struct Plan {
    directory: TempDir,
    variant: Variant,
    toml: String,
    global: String,
    admin: String,
    deadline: Duration,
    checks: bool,
}

impl Plan {
    pub fn variant(mut self, variant: Variant) -> Self {
        self.variant = variant;
        self
    }

    /// A line of `[global]`.
    pub fn global(mut self, line: &str) -> Self {
        self.global.extend([line, "\n"]);
        self
    }

    /// A line of `[admin]`.
    pub fn admin(mut self, line: &str) -> Self {
        self.admin.extend([line, "\n"]);
        self
    }

    /// Backends are checked as the configuration says. Otherwise they are not, so that tests can count their connections.
    pub fn checked(mut self) -> Self {
        self.checks = true;
        self
    }

    /// A file beside the configuration.
    pub fn file(self, name: &str, content: impl AsRef<[u8]>) -> Self {
        std::fs::write(self.path().join(name), content).unwrap();
        self
    }

    /// `NAME.pem` and `NAME.key` beside the configuration, for these names, from the test authority.
    pub fn certificate(self, name: &str, names: &[&str]) -> Self {
        Authority::write(self.path(), name, &Authority::leaf(names));
        self
    }

    /// For a start that has much to read.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// For a process that is started in another way, after [`Self::write`].
    pub fn into_directory(self) -> TempDir {
        self.directory
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Writes the configuration; its name is `sluicegate.toml`.
    pub fn write(&self) {
        let Variant { zero_copy, workers, .. } = self.variant;
        let toml = self.toml.replace("{dir}", &self.path().to_string_lossy());
        let text = format!(
            "[global]\nworkers = {workers}\nzero_copy = \"{zero_copy}\"\n{}\n[admin]\nbind = \"127.0.0.1:0\"\n{}\n{}",
            self.global,
            self.admin,
            if self.checks { toml } else { without_checks(&toml) }
        );
        std::fs::write(self.path().join("sluicegate.toml"), text).unwrap();
    }

    #[track_caller]
    pub fn start(self) -> Gate {
        self.write();
        // Without privileges of our own there are none to give up.
        let wanted = self.variant.unprivileged && rustix::process::geteuid().is_root();
        if let Some(setpriv) = wanted.then(|| programs::require("setpriv")).flatten() {
            return self.start_as_nobody(&setpriv);
        }
        let process = Process::start(&self.arguments(), self.path());
        Gate::over(process, self.directory, self.deadline)
    }

    /// As [`Self::start`], from another file.
    #[track_caller]
    pub fn start_program(self, program: &Path) -> Gate {
        self.write();
        let process = Process::start_program(program, &self.arguments(), self.path());
        Gate::over(process, self.directory, self.deadline)
    }

    #[track_caller]
    fn start_as_nobody(self, setpriv: &Path) -> Gate {
        let files = std::fs::read_dir(self.path()).unwrap().map(|entry| entry.unwrap().path());
        for path in files.chain([self.path().to_owned()]) {
            std::os::unix::fs::chown(&path, Some(65534), Some(65534)).unwrap();
        }
        let process = Process::start_as_nobody(setpriv, &self.arguments(), self.path());
        Gate::over(process, self.directory, self.deadline)
    }

    fn arguments(&self) -> Vec<&'static str> {
        let mut arguments = vec!["run", "--config", "sluicegate.toml"];
        if !self.variant.reuseport {
            arguments.push("--no-reuseport");
        }
        if self.variant.rustls_records {
            arguments.push("--rustls-records");
        }
        arguments
    }
}

#[derive(Debug)]
pub struct Gate {
    pub process: Process,
    pub directory: TempDir,
    bound: Vec<(String, SocketAddr)>,
    /// Descriptors after the start, without those of pooled pipes.
    descriptors: usize,
    checked: bool,
}

impl Gate {
    /// Serves this configuration. `[global]` and `[admin]` are the harness's; `foobar.com.pem`, `foobar.com.key` and
    /// `ca.pem` stand beside it, and `{dir}` is the directory they are in.
    #[track_caller]
    pub fn start(toml: &str) -> Self {
        Self::plan(toml).start()
    }

    pub fn plan(toml: &str) -> Plan {
        let directory = TempDir::new().unwrap();
        Authority::write(directory.path(), "foobar.com", &FOOBAR);
        std::fs::write(directory.path().join("ca.pem"), Authority::pem()).unwrap();
        let (global, admin) = (String::new(), String::new());
        let variant = Variant::chosen();
        Plan { directory, variant, toml: toml.to_owned(), global, admin, deadline: SOON, checks: false }
    }

    /// A process that was started in another way.
    #[track_caller]
    pub fn over(mut process: Process, directory: TempDir, deadline: Duration) -> Self {
        let bound = process.ready(deadline);
        let mut gate = Self { process, directory, bound, descriptors: 0, checked: false };
        gate.descriptors = gate.settled_descriptors();
        gate
    }

    /// Three equal counts in a row: its threads have opened what they need and the scrape's connection is gone.
    fn settled_descriptors(&self) -> usize {
        let mut last = Vec::new();
        wait_for(SOON, || {
            last.push(self.descriptors());
            let tail = &last[last.len().saturating_sub(3)..];
            (tail.len() == 3 && tail.iter().all(|n| *n == tail[0])).then_some(tail[0])
        })
        .expect("a start that comes to rest")
    }

    /// Open descriptors, without those of pooled pipes.
    pub fn descriptors(&self) -> usize {
        let pooled = self.metrics().count("sluicegate_pipes", &[("state", "pooled")]) as usize;
        self.process.descriptors().saturating_sub(2 * pooled)
    }

    /// Every address of a listener, as bound.
    pub fn addresses(&self, listener: &str) -> Vec<SocketAddr> {
        self.bound.iter().filter(|(name, _)| name == listener).map(|(_, address)| *address).collect()
    }

    /// The first address of a listener, as a client reaches it.
    #[track_caller]
    pub fn address(&self, listener: &str) -> SocketAddr {
        let bound = self.addresses(listener);
        let mut address = *bound.first().unwrap_or_else(|| panic!("no listener {listener}: {:?}", self.bound));
        match address {
            SocketAddr::V4(v4) if v4.ip().is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
            SocketAddr::V6(v6) if v6.ip().is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
            _ => {}
        }
        address
    }

    pub fn metrics(&self) -> Metrics {
        Metrics::scrape(self.address("admin"))
    }

    /// Waits until the metrics say so, and gives those that did.
    #[track_caller]
    pub fn wait_metrics(&self, what: &str, condition: impl Fn(&Metrics) -> bool) -> Metrics {
        let reached = wait_for(SOON, || Some(self.metrics()).filter(|m| condition(m)));
        reached.unwrap_or_else(|| panic!("not within {SOON:?}: {what}\n{:#?}", closed(&self.metrics())))
    }

    /// Waits until this many connections ended so, and gives the metrics that said it.
    #[track_caller]
    pub fn wait_outcome(&self, outcome: &str, count: u64) -> Metrics {
        let metrics = self.wait_metrics(&format!("{count} × {outcome}"), |m| m.outcome(outcome) >= count);
        assert_eq!(metrics.outcome(outcome), count, "{:#?}", closed(&metrics));
        metrics
    }

    /// The access log so far.
    pub fn records(&self) -> Vec<Value> {
        let lines = self.process.stdout.all();
        let records = lines
            .iter()
            .filter(|line| line.starts_with('{'))
            .map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("a broken line: {e}: {line}")));
        records.filter(|record| record["event"] == "connection").collect()
    }

    /// Waits for at least this many records.
    #[track_caller]
    pub fn wait_records(&self, count: usize) -> Vec<Value> {
        wait_until(SOON, &format!("{count} records"), || self.records().len() >= count);
        self.records()
    }

    /// SIGTERM twice, with connections open, so that it does not wait for them; the baseline is not asked for.
    #[track_caller]
    pub fn stop_now(&mut self) {
        self.checked = true;
        self.process.signal(rustix::process::Signal::TERM);
        // Two of a kind that come at once are one.
        wait_until(SOON, "a drain", || self.process.messages().iter().any(|m| m["message"] == "draining"));
        self.process.stop();
    }

    /// It has ended, and that was the test's doing.
    pub fn ended(mut self) {
        self.checked = true;
    }

    /// Everything is back where it was after the start, and it ends as it should.
    #[track_caller]
    pub fn finish(mut self) {
        self.check();
    }

    /// Waits until everything is back where it was after the start.
    #[track_caller]
    pub fn wait_quiet(&self) {
        let mut last = String::new();
        let quiet = wait_for(SOON, || self.restless().inspect(|why| last.clone_from(why)).is_none().then_some(()));
        assert!(quiet.is_some(), "not back at the baseline: {last}\n{}", self.process.open_files());
    }

    #[track_caller]
    fn check(&mut self) {
        self.checked = true;
        self.wait_quiet();
        self.process.stop();
        self.records();
    }

    /// What is not back at its starting value.
    fn restless(&self) -> Option<String> {
        let metrics = self.metrics();
        for (gauge, labels) in [
            ("sluicegate_listener_connections", &[][..]),
            ("sluicegate_backend_connections", &[]),
            ("sluicegate_worker_connections", &[]),
            ("sluicegate_pipes", &[("state", "in_use")]),
        ] {
            let value = metrics.count(gauge, labels);
            if value != 0 {
                return Some(format!("{gauge} is {value}"));
            }
        }
        let accepted = metrics.count("sluicegate_listener_accepted_total", &[]);
        let ended = metrics.count("sluicegate_connections_closed_total", &[]);
        if accepted != ended {
            return Some(format!("{accepted} accepted, {ended} ended: {:#?}", closed(&metrics)));
        }
        if metrics.outcome("internal") != 0 {
            return Some(format!("a bug of ours: {}", self.process.stderr.text()));
        }
        let descriptors = self.descriptors();
        (descriptors > self.descriptors).then(|| format!("{descriptors} descriptors, {} at start", self.descriptors))
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let lines = self.process.stderr.all();
            eprintln!("--- stderr of the gate, last lines\n{}", lines[lines.len().saturating_sub(30)..].join("\n"));
        } else if !self.checked {
            self.check();
        }
    }
}

/// The same configuration with `check = "off"` in every pool that is written as a table.
fn without_checks(toml: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for line in toml.lines() {
        let name = line.trim_start_matches('[').strip_prefix("pool.").and_then(|rest| rest.split([']', '.']).next());
        names.extend(name.filter(|name| line.starts_with('[') && !names.contains(name)));
    }
    names.iter().fold(toml.to_owned(), |toml, name| {
        let header = format!("[pool.{name}]\n");
        match toml.split_once(&header) {
            Some((before, after)) => format!("{before}{header}check = \"off\"\n{after}"),
            None => format!("{toml}\n{header}check = \"off\"\n"),
        }
    })
}

/// Outcomes that happened.
fn closed(metrics: &Metrics) -> Vec<(String, u64)> {
    let all = metrics.select("sluicegate_connections_closed_total", &[]).filter(|s| s.value > 0.0);
    all.map(|s| (s.label("outcome").unwrap_or_default().to_owned(), s.value as u64)).collect()
}

/// A plain listener `tcp`; `more` are further lines of it.
pub fn tcp(more: &str) -> String {
    format!("[listener.tcp]\nbind = \"127.0.0.1:0\"\npool = \"web\"\n{more}\n")
}

/// A TLS listener `https` for foobar.com; `more` are further lines of its `tls` table.
pub fn https(more: &str) -> String {
    format!(
        "[listener.https]\nbind = \"127.0.0.1:0\"\npool = \"web\"\n[listener.https.tls]\n\
         certificates = [{{ cert = \"foobar.com.pem\", key = \"foobar.com.key\" }}]\n{more}\n"
    )
}

/// The pool `web`; `more` are further lines of it.
pub fn pool(more: &str, backends: &[SocketAddr]) -> String {
    let list: Vec<String> = backends.iter().map(|b| format!("\"{b}\"")).collect();
    format!("[pool.web]\nbackends = [{}]\n{more}\n", list.join(", "))
}

/// One `[[pool.web.backend]]`.
pub fn backend(name: &str, address: SocketAddr, more: &str) -> String {
    format!("[[pool.web.backend]]\nname = \"{name}\"\naddress = \"{address}\"\n{more}\n")
}

/// A text field of a record.
#[track_caller]
pub fn word(record: &Value, key: &str) -> String {
    process::word(record, key)
}
