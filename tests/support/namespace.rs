//! A network of a test's own.

use std::{
    fs::File,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::programs;

/// A namespace with one network to this host; gone when dropped.
#[derive(Debug)]
pub struct Namespace {
    ip: PathBuf,
    nft: PathBuf,
    pub name: String,
    /// The first three numbers of its network.
    network: String,
    outer: String,
}

impl Namespace {
    /// `None`, with the reason, where this is not allowed.
    #[track_caller]
    pub fn new() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (ip, nft) = (programs::require("ip")?, programs::require("nft")?);
        let (id, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let (name, network) = (format!("sg{number}-{id}"), format!("10.{}.{}", 213 + number, id % 250));
        let (inner, outer) = (format!("i{number}-{id}"), format!("o{number}-{id}"));
        let namespace = Self { ip, nft, name: name.clone(), network: network.clone(), outer: outer.clone() };
        let (near, far) = (format!("{network}.1/24"), format!("{network}.2/24"));
        let steps: [&[&str]; 7] = [
            &["netns", "add", &name],
            &["link", "add", &outer, "type", "veth", "peer", "name", &inner, "netns", &name],
            &["addr", "add", &near, "dev", &outer],
            &["link", "set", &outer, "up"],
            &["-n", &name, "addr", "add", &far, "dev", &inner],
            &["-n", &name, "link", "set", &inner, "up"],
            &["-n", &name, "link", "set", "lo", "up"],
        ];
        for step in steps {
            let done = programs::run(&namespace.ip, step, Path::new("/"), b"");
            if !done.success {
                programs::skip(&format!("no network namespace: ip {}: {}", step.join(" "), done.stderr.trim()));
                return None;
            }
        }
        Some(namespace)
    }

    /// An address inside.
    pub fn address(&self, port: u16) -> SocketAddr {
        format!("{}.2:{port}", self.network).parse().unwrap()
    }

    /// The address of this host in its network that ends so; 1 is there, others are added.
    #[track_caller]
    pub fn outside(&self, last: u8) -> IpAddr {
        let address = format!("{}.{last}", self.network);
        if last != 1 {
            let arguments = ["addr", "replace", &format!("{address}/24"), "dev", &self.outer];
            let done = programs::run(&self.ip, &arguments, Path::new("/"), b"");
            assert!(done.success, "{}", done.stderr);
        }
        address.parse().unwrap()
    }

    /// Does something in it; so do the threads and processes that this starts.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let entrance = File::open(Path::new("/run/netns").join(&self.name)).unwrap();
        let inside = move || {
            move_into_link_name_space(entrance.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        };
        std::thread::scope(|scope| scope.spawn(inside).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Makes every address of a network one of its own.
    #[track_caller]
    pub fn own(&self, network: &str) {
        let arguments = ["-n", &self.name, "route", "add", "local", network, "dev", "lo"];
        let done = programs::run(&self.ip, &arguments, Path::new("/"), b"");
        assert!(done.success, "{}", done.stderr);
    }

    /// What its packet filter answers.
    #[track_caller]
    pub fn nft(&self, words: &[&str]) -> programs::Output {
        let nft = self.nft.to_string_lossy();
        let arguments = [&["netns", "exec", &self.name, &nft], words].concat();
        programs::run(&self.ip, &arguments, Path::new("/"), b"")
    }

    /// Rules of its packet filter.
    #[track_caller]
    pub fn filter(&self, rules: &str) {
        let nft = self.nft.to_string_lossy();
        let arguments = ["netns", "exec", &self.name, &nft, "-f", "-"];
        let done = programs::run(&self.ip, &arguments, Path::new("/"), rules.as_bytes());
        assert!(done.success, "{}", done.stderr);
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = programs::run(&self.ip, &["netns", "del", &self.name], Path::new("/"), b"");
    }
}
