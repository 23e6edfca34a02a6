//! What every round needs: a directory, a certificate, pages, three backends on CPU 1.

use std::{fs, io::Read, net::TcpListener, os::unix::fs::PermissionsExt, path::Path};

use anyhow::{Context, Result, ensure};
use rcgen::{CertificateParams, DnType, KeyPair};
use tempfile::TempDir;

use crate::{
    programs::{self, Server, Tools},
    proxy::{Proxy, Running},
};

/// Where the generators and the backends run.
pub const GENERATOR_CPU: &str = "1";
/// Where the proxies run.
pub const PROXY_CPU: &str = "0";

#[derive(Debug)]
pub struct Stage {
    pub tools: Tools,
    /// The servers end before their directory goes.
    _backends: Server,
    backend_ports: [u16; 3],
    pub directory: TempDir,
}

impl Stage {
    pub fn set_up(tools: Tools) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("peers-").tempdir()?;
        programs::remove_on_signals(directory.path());
        // nginx started as root reads it as somebody else.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
        write_pages(&directory.path().join("www"))?;
        write_certificate(directory.path())?;
        fs::write(directory.path().join("up.lua"), "wrk.method = \"POST\"\nwrk.body = string.rep(\"x\", 1048576)\n")?;

        let backend_ports = free_ports()?;
        let configuration = fill(include_str!("configs/backend.conf"), &backend_values(backend_ports));
        fs::write(directory.path().join("backend.conf"), configuration)?;
        let nginx = nginx_command(&tools, GENERATOR_CPU, "backend.conf", directory.path())?;
        let backends = Server::start("backend", directory.path(), &nginx)?;
        backends.wait_ports(&backend_ports)?;
        Ok(Self { tools, _backends: backends, backend_ports, directory })
    }

    /// Starts a proxy on free ports and waits until it serves.
    pub fn start(&self, proxy: Proxy) -> Result<Running> {
        let directory = self.directory.path();
        let [plain, tls, admin] = free_ports()?;
        let configuration = self.configuration(proxy, [plain, tls, admin].map(|port| port.to_string()));
        let file = format!("{}.conf", proxy.name());
        fs::write(directory.join(&file), configuration)?;
        let command = proxy.command(&self.tools, &file, directory)?;
        let server = Server::start(proxy.name(), directory, &command)?;
        server.wait_ports(&[plain, tls])?;
        Ok(Running { server, plain, tls })
    }

    /// The configuration of each proxy, for the report: every run has other ports.
    pub fn configurations(&self) -> Vec<(Proxy, String)> {
        let ports = || ["PLAIN", "TLS", "ADMIN"].map(str::to_owned);
        Proxy::ALL.into_iter().map(|proxy| (proxy, self.configuration(proxy, ports()))).collect()
    }

    fn configuration(&self, proxy: Proxy, [plain, tls, admin]: [String; 3]) -> String {
        let mut values = backend_values(self.backend_ports);
        values.extend([("plain", plain), ("tls", tls), ("admin", admin)]);
        values.extend(proxy.values(&self.tools));
        let text = fill(proxy.template(), &values);
        text.trim_start().to_owned()
    }
}

/// nginx with all its files in the directory, pinned.
pub fn nginx_command(tools: &Tools, cpu: &str, file: &str, directory: &Path) -> Result<Vec<String>> {
    let text = |path: &Path| path.to_str().map(str::to_owned).context("a path that is not UTF-8");
    let prefix = format!("{}/", text(directory)?);
    let words = [&text(&tools.taskset)?, "-c", cpu, &text(&tools.nginx)?, "-e", "start.err", "-p", &prefix, "-c", file];
    Ok(words.map(str::to_owned).to_vec())
}

fn backend_values(ports: [u16; 3]) -> Vec<(&'static str, String)> {
    ["backend1", "backend2", "backend3"].into_iter().zip(ports.iter().map(u16::to_string)).collect()
}

fn fill(template: &str, values: &[(&str, String)]) -> String {
    values.iter().fold(template.to_owned(), |text, (name, value)| text.replace(&format!("{{{name}}}"), value))
}

/// Noise: nothing on the way can make it smaller.
fn write_pages(directory: &Path) -> Result<()> {
    fs::create_dir(directory)?;
    for (name, bytes) in [("64k.bin", 64 << 10), ("1m.bin", 1 << 20), ("16m.bin", 16 << 20)] {
        let mut noise = Vec::new();
        fs::File::open("/dev/urandom")?.take(bytes).read_to_end(&mut noise)?;
        fs::write(directory.join(name), noise)?;
    }
    Ok(())
}

/// One ECDSA P-256 certificate for everybody.
fn write_certificate(directory: &Path) -> Result<()> {
    let mut parameters = CertificateParams::new(vec!["foobar.com".to_owned(), "127.0.0.1".to_owned()])?;
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, "foobar.com");
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let (certificate, key) = (parameters.self_signed(&key)?.pem(), key.serialize_pem());
    fs::write(directory.join("both.pem"), format!("{certificate}{key}"))?;
    fs::write(directory.join("cert.pem"), certificate)?;
    fs::write(directory.join("key.pem"), key)?;
    Ok(())
}

/// Free ports below those that the kernel gives to outgoing connections: a round makes tens of thousands of these, and
/// one of them could take a port before its owner binds it. Two runs at a time begin to look at different places.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    const FIRST: u16 = 10_000;
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let end: u16 = range.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(32768);
    ensure!(end > FIRST, "no ports between {FIRST} and ip_local_port_range, which begins at {end}");
    let count = end - FIRST;
    let begin = u16::try_from(std::process::id().wrapping_mul(64) % u32::from(count))?;
    let ports = (begin..count).chain(0..begin).map(|offset| FIRST + offset);
    let held: Vec<TcpListener> = ports.filter_map(|port| TcpListener::bind(("127.0.0.1", port)).ok()).take(N).collect();
    ensure!(held.len() == N, "no {N} free ports between {FIRST} and {end} on 127.0.0.1");
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(&held) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}
