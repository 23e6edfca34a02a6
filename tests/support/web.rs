//! A web server that can be killed, stopped and started again: nginx in one process, always at the same address.

use std::{
    fmt::Write as _,
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command},
};

use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use super::{Authority, SOON, nginx, programs, wait_for};

#[derive(Debug)]
pub struct WebServer {
    program: PathBuf,
    directory: TempDir,
    child: Option<Child>,
    /// The network namespace it lives in.
    namespace: Option<String>,
    /// Bytes of each answer that it sends in a second.
    limit: Option<u32>,
    pub address: SocketAddr,
    /// The same over TLS, for foobar.com.
    pub tls: SocketAddr,
}

/// What it answers on `/`; `/sick` is answered with status 503.
pub const BODY: &str = "all of the answer\n";

impl WebServer {
    /// `None` when nginx is not installed.
    #[track_caller]
    pub fn start() -> Option<Self> {
        let held = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [address, tls] = held.map(|listener| listener.local_addr().unwrap());
        Self::start_on(address, tls, None)
    }

    /// The same in a network namespace.
    #[track_caller]
    pub fn start_on(address: SocketAddr, tls: SocketAddr, namespace: Option<&str>) -> Option<Self> {
        let program = programs::require("nginx")?;
        let directory = TempDir::new().unwrap();
        Authority::write(directory.path(), "foobar.com", &Authority::leaf(&["foobar.com"]));
        let namespace = namespace.map(str::to_owned);
        let mut server = Self { program, directory, child: None, namespace, limit: None, address, tls };
        server.revive();
        Some(server)
    }

    /// From now on it sends each answer at so many bytes a second.
    #[track_caller]
    pub fn limit(&mut self, bytes_per_second: u32) {
        self.kill();
        self.limit = Some(bytes_per_second);
        self.revive();
    }

    /// Starts it again after [`Self::kill`].
    #[track_caller]
    pub fn revive(&mut self) {
        std::fs::write(self.directory.path().join("nginx.conf"), self.configuration()).unwrap();
        let mut command = match &self.namespace {
            None => Command::new(&self.program),
            Some(name) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", name]).arg(&self.program);
                command
            }
        };
        self.child = Some(nginx::spawn(&mut command, self.directory.path()));
        let serving = wait_for(SOON, || TcpStream::connect(self.address).ok());
        let log = std::fs::read_to_string(self.directory.path().join("error.log")).unwrap_or_default();
        assert!(serving.is_some(), "nginx does not serve: {log}");
    }

    /// SIGKILL; when this returns, its sockets are gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            programs::end(&mut child);
        }
    }

    /// SIGSTOP or SIGCONT.
    pub fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("a running server");
        rustix::process::kill_process(Pid::from_child(child), signal).expect("our own child");
    }

    fn configuration(&self) -> String {
        let directory = self.directory.path().display();
        let mut text = format!(
            "daemon off;\nmaster_process off;\npid {directory}/nginx.pid;\nevents {{ worker_connections 1024; }}\n\
             http {{\n  access_log off;\n  default_type text/plain;\n  lingering_close off;\n"
        );
        if let Some(limit) = self.limit {
            writeln!(text, "  limit_rate {limit};").unwrap();
        }
        for name in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
            writeln!(text, "  {name}_temp_path {directory}/{name};").unwrap();
        }
        let locations = format!("location / {{ return 200 '{BODY}'; }} location = /sick {{ return 503; }}");
        writeln!(text, "  server {{ listen {} backlog=4096; {locations} }}", self.address).unwrap();
        let certificate = "ssl_certificate foobar.com.pem; ssl_certificate_key foobar.com.key;";
        writeln!(text, "  server {{ listen {} ssl; {certificate} {locations} }}\n}}", self.tls).unwrap();
        text
    }
}

impl Drop for WebServer {
    fn drop(&mut self) {
        self.kill();
    }
}
