//! Debian's database server as primary and replica, demoted while clients are connected.

use std::{
    io::Read,
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, SystemTime},
};

use tempfile::TempDir;

use super::{is_up, transitions};
use crate::support::{
    Gate, LATE, Metrics, SOON, client,
    gate::{backend, pool, word},
    patient, programs, wait_until,
};

struct Programs {
    server: PathBuf,
    install: PathBuf,
    client: PathBuf,
}

struct Database {
    child: Child,
    directory: TempDir,
    client: PathBuf,
    address: SocketAddr,
}

impl Programs {
    fn find() -> Option<Self> {
        let (server, install) = (programs::require("mariadbd")?, programs::require("mariadb-install-db")?);
        Some(Self { server, install, client: programs::require("mariadb")? })
    }
}

impl Database {
    fn start(programs: &Programs, id: u16, more: &[&str]) -> Self {
        let directory = TempDir::new().unwrap();
        let data = format!("--datadir={}", directory.path().join("data").display());
        // In a folder that is shared, one that starts removes the temporary tables of another.
        let temporary = format!("--tmpdir={}", directory.path().display());
        let mut arguments = vec!["--no-defaults", &data, &temporary, "--user=root", "--skip-test-db"];
        arguments.push("--auth-root-authentication-method=normal");
        let done = programs::run(&programs.install, &arguments, directory.path(), b"");
        assert!(done.success, "{}{}", done.stdout, done.stderr);
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = held.local_addr().unwrap();
        drop(held);
        let child = Command::new(&programs.server)
            .args([
                "--no-defaults",
                "--user=root",
                &data,
                &temporary,
                "--bind-address=127.0.0.1",
                "--skip-name-resolve",
            ])
            .arg(format!("--port={}", address.port()))
            .arg(format!("--socket={}", directory.path().join("s").display()))
            .arg(format!("--pid-file={}", directory.path().join("pid").display()))
            .args([&format!("--server-id={id}"), "--log-bin=bin", "--innodb-buffer-pool-size=16M"])
            .args(["--innodb-log-file-size=8M", "--skip-log-error", "--max-connections=50", "--connect-timeout=60"])
            .args(more)
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let database = Self { child, directory, client: programs.client.clone(), address };
        wait_until(LATE, "a database that answers", || database.try_sql("SELECT 1").success);
        database
    }

    fn try_sql(&self, sql: &str) -> programs::Output {
        let socket = format!("--socket={}", self.directory.path().join("s").display());
        let arguments = ["--no-defaults", "-uroot", &socket, "-N", "-e", sql];
        programs::run(&self.client, &arguments, Path::new("/"), b"")
    }

    #[track_caller]
    fn sql(&self, sql: &str) -> String {
        let output = self.try_sql(sql);
        assert!(output.success, "{sql}: {}", output.stderr);
        output.stdout
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        programs::end(&mut self.child);
    }
}

/// Asks through the gate.
fn ask(programs: &Programs, gate: SocketAddr, sql: &str) -> programs::Output {
    let (host, port) = (format!("-h{}", gate.ip()), format!("-P{}", gate.port()));
    let arguments = ["--no-defaults", &host, &port, "-uapp", "-papp", "--skip-ssl", "-N", "-e", sql];
    programs::run(&programs.client, &arguments, Path::new("/"), b"")
}

/// A client with the server's greeting, and when its connection ended.
fn hold(address: SocketAddr) -> thread::JoinHandle<SystemTime> {
    let mut stream: TcpStream = client::connect(address);
    let mut greeting = [0; 16];
    stream.read_exact(&mut greeting).unwrap();
    thread::spawn(move || {
        while stream.read(&mut [0; 256]).is_ok_and(|count| count > 0) {}
        SystemTime::now()
    })
}

#[test]
fn b8_a_demoted_primary_loses_its_clients_at_once_and_the_new_one_gets_them() {
    let Some(programs) = Programs::find() else { return };
    let first = thread::scope(|scope| {
        let second = scope.spawn(|| Database::start(&programs, 2, &[]));
        (Database::start(&programs, 1, &[]), second.join().unwrap())
    });
    let (old, new) = first;
    old.sql(
        "CREATE USER app@'%' IDENTIFIED BY 'app'; CREATE USER checker@'%' IDENTIFIED BY 'hunter2'; \
         CREATE USER r@'%' IDENTIFIED BY 'r'; GRANT REPLICATION SLAVE ON *.* TO r@'%'; \
         CREATE DATABASE d; GRANT ALL ON d.* TO app@'%'; CREATE TABLE d.t (n INT); INSERT INTO d.t VALUES (1)",
    );
    new.sql(&format!(
        "CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT={}, MASTER_USER='r', MASTER_PASSWORD='r', \
         MASTER_USE_GTID=slave_pos; SET GLOBAL read_only=1; START SLAVE",
        old.address.port()
    ));
    wait_until(LATE, "replication", || new.try_sql("SELECT n FROM d.t").stdout.trim() == "1");
    let pool = |name: &str, role: &str| {
        let backends = backend("old", old.address, "") + &backend("new", new.address, "");
        let check = format!(
            "[pool.web.check]\ntype = \"mysql\"\nuser = \"checker\"\npassword = \"hunter2\"\nrole = \"{role}\"\n\
             every = \"200ms\"\n"
        );
        let listener = format!("[listener.{name}]\nbind = \"127.0.0.1:0\"\npool = \"{name}\"\n");
        listener + &(backends + &check).replace("pool.web", &format!("pool.{name}"))
    };
    let gate = Gate::plan(&(pool("writes", "primary") + &pool("reads", "replica"))).checked().start();
    let (writes, reads) = (gate.address("writes"), gate.address("reads"));
    assert_eq!(ask(&programs, writes, "SELECT @@server_id").stdout.trim(), "1");
    assert_eq!(ask(&programs, reads, "SELECT @@server_id").stdout.trim(), "2");
    let held: Vec<_> = (0..20).map(|_| hold(writes)).collect();
    old.sql("SET GLOBAL read_only=1");
    let ended: Vec<_> = held.into_iter().map(|client| client.join().unwrap()).collect();
    let told = wait_for_line(&gate, "writes", "old");
    let latest = ended.iter().max().unwrap().duration_since(told).unwrap_or_default();
    println!("S3/B8: 20 connections of the demoted primary ended within {latest:?} of the transition");
    assert!(latest <= patient(Duration::from_millis(100)), "{latest:?}");
    // Between the two there is no primary, and nobody is sent to a replica instead.
    let refused = ask(&programs, writes, "SELECT 1");
    assert!(!refused.success, "{}", refused.stdout);
    gate.wait_outcome("backend_down", 20);
    new.sql("STOP SLAVE; SET GLOBAL read_only=0");
    gate.wait_metrics("the new primary", |m| {
        m.count("sluicegate_backend_up", &[("pool", "writes"), ("backend", "new")]) == 1
    });
    let written = ask(&programs, writes, "INSERT INTO d.t VALUES (2); SELECT @@server_id");
    assert_eq!((written.stdout.trim(), written.success), ("2", true), "{}", written.stderr);
    wait_until(SOON, "the old one reads", || ask(&programs, reads, "SELECT @@server_id").stdout.trim() == "1");
    assert!(transitions(&gate.metrics(), "down") >= 2 && !is_up_in(&gate, "writes", "old"));
    assert!(!gate.process.stderr.text().contains("hunter2"));
    gate.finish();
}

/// Each user may come from one address only: the client from the one that only the header tells, and the checks from their
/// own.
#[test]
fn p9_a_database_behind_knows_the_client_and_lets_our_checks_in() {
    const WHO: &str = "SELECT USER(), HOST FROM information_schema.processlist WHERE ID = CONNECTION_ID()";
    let Some(programs) = Programs::find() else { return };
    let database = Database::start(&programs, 1, &["--proxy-protocol-networks=127.0.0.1"]);
    database.sql(
        "CREATE USER app@'::1' IDENTIFIED BY 'app'; GRANT PROCESS ON *.* TO app@'::1'; \
         CREATE USER checker@'127.0.0.1' IDENTIFIED BY 'hunter2'",
    );
    for version in ["off", "v1", "v2"] {
        let check = "check = { type = \"mysql\", user = \"checker\", password = \"hunter2\", every = \"100ms\" }";
        let listener = "[listener.db]\nbind = \"[::1]:0\"\npool = \"web\"\n";
        let send = format!("send_proxy = \"{version}\"\n{check}");
        let gate = Gate::plan(&[listener, &pool(&send, &[database.address])].concat()).checked().start();
        let checks = |m: &Metrics, result| m.count("sluicegate_health_checks_total", &[("result", result)]);
        let metrics = gate.wait_metrics("a few checks", |m| checks(m, "ok") >= 5);
        assert_eq!(metrics.count("sluicegate_health_checks_total", &[]), checks(&metrics, "ok"), "{version}");
        let answer = ask(&programs, gate.address("db"), WHO);
        let client = word(&gate.wait_records(1)[0], "client");
        if version == "off" {
            assert!(answer.stderr.contains("Access denied for user 'app'@'127.0.0.1'"), "{}", answer.stderr);
            continue;
        }
        let (ip, port) = client.rsplit_once(':').unwrap();
        let ip = ip.trim_matches(['[', ']']);
        assert_eq!(answer.stdout.trim(), format!("app@{ip}\t{ip}:{port}"), "{version} {}", answer.stderr);
        assert_eq!(ip, "::1");
        gate.finish();
    }
    // Whoever leaves without a word or is not understood is counted.
    assert_eq!(database.sql("SHOW GLOBAL STATUS LIKE 'Aborted_clients'").trim(), "Aborted_clients\t0");
}

fn is_up_in(gate: &Gate, pool: &str, backend: &str) -> bool {
    let metrics = gate.metrics();
    metrics.count("sluicegate_backend_up", &[("pool", pool), ("backend", backend)]) == 1 && is_up(&metrics, backend)
}

/// When the log said that this backend is down.
fn wait_for_line(gate: &Gate, pool: &str, backend: &str) -> SystemTime {
    let line = crate::support::wait_for(SOON, || {
        gate.process
            .messages()
            .into_iter()
            .find(|m| m["message"] == "backend is down" && m["pool"] == pool && m["backend"] == backend)
    });
    let line = line.expect("a line that says so");
    assert!(line["reason"].as_str().unwrap_or_default().contains("read_only is on"), "{line}");
    line["timestamp"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap().into()
}
