//! nginx as a user has it: three named HTTP/1.1 backends and one for HTTP/2 without TLS.

use std::{
    fmt::Write,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

use super::{SOON, programs, wait_for};

const NAMES: [&str; 3] = ["web-01", "web-02", "web-03"];

#[derive(Debug)]
pub struct Nginx {
    child: Child,
    _directory: TempDir,
    /// The names they answer with and their addresses.
    pub named: Vec<(&'static str, SocketAddr)>,
    /// Answers `h2c` over HTTP/2 without TLS.
    pub h2c: SocketAddr,
}

impl Nginx {
    /// `None` when nginx is not installed.
    pub fn start() -> Option<Self> {
        let program = programs::require("nginx")?;
        let started = (0..5).find_map(|_| Self::attempt(&program));
        Some(started.expect("nginx on free ports"))
    }

    /// The addresses of the three.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.named.iter().map(|(_, address)| *address).collect()
    }

    fn attempt(program: &Path) -> Option<Self> {
        let directory = TempDir::new().unwrap();
        let ports = free_addresses();
        std::fs::write(directory.path().join("nginx.conf"), configuration(directory.path(), &ports)).unwrap();
        let mut child = spawn(&mut Command::new(program), directory.path());
        let serving = wait_for(SOON, || {
            if child.try_wait().unwrap().is_some() {
                return Some(false);
            }
            ports.iter().all(|port| TcpStream::connect(port).is_ok()).then_some(true)
        });
        if serving != Some(true) {
            programs::end(&mut child); // a port was taken meanwhile
            return None;
        }
        let named = NAMES.into_iter().zip(ports).collect();
        Some(Self { child, _directory: directory, named, h2c: ports[3] })
    }
}

/// Starts the program with what is in the directory.
pub(super) fn spawn(program: &mut Command, directory: &Path) -> Child {
    program.args(["-e", "error.log", "-p"]).arg(directory).args(["-c", "nginx.conf"]);
    program.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

impl Drop for Nginx {
    fn drop(&mut self) {
        programs::end(&mut self.child);
    }
}

fn free_addresses() -> [SocketAddr; 4] {
    let held = [(); 4].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    held.map(|listener| listener.local_addr().unwrap())
}

fn configuration(directory: &Path, ports: &[SocketAddr; 4]) -> String {
    let directory = directory.display();
    let mut text = format!(
        "daemon off;\nmaster_process off;\npid {directory}/nginx.pid;\nworker_rlimit_nofile 8192;\n\
         events {{ worker_connections 4096; }}\nhttp {{\n  access_log off;\n  default_type text/plain;\n\
         keepalive_requests 100000000;\n  client_body_temp_path {directory}/body;\n  proxy_temp_path {directory}/proxy;\n\
         fastcgi_temp_path {directory}/fastcgi;\n  uwsgi_temp_path {directory}/uwsgi;\n  scgi_temp_path {directory}/scgi;\n"
    );
    for (name, port) in NAMES.into_iter().zip(ports) {
        writeln!(text, "  server {{ listen {port} backlog=4096; location / {{ return 200 \"{name}\\n\"; }} }}")
            .unwrap();
    }
    writeln!(text, "  server {{ listen {} http2; location / {{ return 200 \"h2c\\n\"; }} }}\n}}", ports[3]).unwrap();
    text
}

#[test]
fn nginx_answers_with_its_names() {
    let Some(nginx) = Nginx::start() else { return };
    for (name, address) in &nginx.named {
        let answer = super::metrics::get(*address, "/", &[]).unwrap();
        assert_eq!((answer.status, answer.body), (200, format!("{name}\n")));
    }
    assert!(TcpStream::connect(nginx.h2c).is_ok());
}
