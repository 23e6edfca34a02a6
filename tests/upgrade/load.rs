//! S5, A5: upgrades while clients come and while connections last.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use super::{site, start};
use crate::support::{
    Backend, Load, SOON, Variant, WebServer, client, full,
    gate::{pool, tcp},
    lineage::Over,
    load::{faults, slowest},
    wait_until,
};

/// A connection that lasts, and exchanges tagged bytes without a pause.
#[derive(Debug)]
struct Lasting {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<usize>,
}

impl Lasting {
    fn start(address: SocketAddr, id: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let mut stream = client::connect(address);
        let thread = thread::spawn(move || {
            let mut exchanges = 0;
            while !stopped.load(Ordering::Relaxed) {
                let message: Vec<u8> =
                    (0..512_u64).flat_map(|n| (id << 32 | exchanges << 10 | n).to_le_bytes()).collect();
                client::exchange(&mut stream, &message);
                exchanges += 1;
                thread::sleep(std::time::Duration::from_millis(5));
            }
            exchanges as usize
        });
        Self { stop, thread }
    }

    /// How often it has exchanged 4 KiB.
    fn finish(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("every byte as it was sent")
    }
}

#[test]
fn s5_upgrades_under_load_lose_nothing() {
    let (upgrades, rate) = if full() { (50, 2_000) } else { (5, 300) };
    let Some(server) = WebServer::start() else { return };
    let echo = Backend::echo();
    let toml = tcp("")
        + "[listener.echo]\nbind = \"127.0.0.1:0\"\npool = \"echo\"\n"
        + &pool("", &[server.address])
        + &format!(
            "[pool.echo]\nbackends = [\"{}\"]\n[timeouts]\ndrain = \"20s\"\n[log]\naccess = \"off\"\n",
            echo.address
        );
    let mut lineage = start(&toml);
    let load = Load::start(lineage.gate.address("tcp"), rate, 8);
    let begin = Instant::now();
    let mut exchanges = 0;
    for number in 0..upgrades {
        let count = load.count();
        wait_until(SOON, "load before the upgrade", || load.count() > count + 100);
        // They begin in one process and go on there while the next one serves.
        let lasting: Vec<_> = (0..4).map(|n| Lasting::start(lineage.gate.address("echo"), number * 4 + n)).collect();
        lineage.upgrade();
        let count = load.count();
        wait_until(SOON, "load after the upgrade", || load.count() > count + 100);
        exchanges += lasting.into_iter().map(Lasting::finish).sum::<usize>();
    }
    let took = begin.elapsed();
    let visits = load.finish();
    let faults = faults(&visits);
    println!(
        "S5: {upgrades} upgrades in {took:.1?}, n = {} connections at {:.0}/s, {} failed, slowest {:?}; {exchanges} \
         exchanges of 4 KiB on {} connections that lasted",
        visits.len(),
        visits.len() as f64 / took.as_secs_f64(),
        faults.len(),
        slowest(&visits),
        upgrades * 4,
    );
    assert!(faults.is_empty(), "{faults:?}");
    lineage.wait_alone(SOON);
    let metrics = lineage.gate.wait_metrics("all", |m| {
        m.count("sluicegate_listener_accepted_total", &[("listener", "tcp")]) == visits.len() as u64
    });
    assert_eq!(metrics.count("sluicegate_listener_accepted_total", &[("listener", "echo")]), upgrades * 4);
    let stopped = lineage.gate.process.messages().into_iter().filter(|m| m["message"] == "stopped").count() as u64;
    assert_eq!(stopped, upgrades, "each process ended in good order");
    lineage.finish();
}

/// Clients come as fast as they can to two workers, whose number changes with the upgrades.
#[test]
fn a5_upgrades_reset_and_refuse_nobody() {
    const THREADS: usize = 4;
    let upgrades = if full() { 100 } else { 6 };
    let backend = Backend::echo();
    let toml = site(backend.address, "[log]\naccess = \"off\"\n");
    let plan = crate::support::Gate::plan(&toml).variant(Variant { workers: 2, ..Variant::chosen() });
    let mut lineage = crate::support::Lineage::start(plan);
    let address = lineage.gate.address("tcp");
    let (served, stop, faults) = (AtomicUsize::new(0), AtomicBool::new(false), Mutex::new(Vec::new()));
    let path = lineage.directory().join("sluicegate.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    match exchange(address) {
                        Ok(()) => drop(served.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => faults.lock().unwrap().push(error),
                    }
                }
            });
        }
        let _over = Over(&stop);
        for number in 0..upgrades {
            let begin = served.load(Ordering::Relaxed);
            wait_until(SOON, "clients", || served.load(Ordering::Relaxed) > begin + 1_000);
            let workers = [1, 4, 2, 2][number % 4];
            std::fs::write(&path, text.replace("workers = 2", &format!("workers = {workers}"))).unwrap();
            lineage.upgrade();
        }
    });
    let (served, faults) = (served.into_inner(), faults.into_inner().unwrap());
    println!("A5: {upgrades} upgrades, n = {served}, {} failed", faults.len());
    assert!(faults.is_empty(), "{faults:?}");
    lineage.wait_alone(SOON);
    assert_eq!(lineage.gate.metrics().count("sluicegate_listener_accepted_total", &[]), served as u64);
    lineage.finish();
}

fn exchange(address: SocketAddr) -> Result<(), std::io::Error> {
    let mut stream = client::bounded(TcpStream::connect_timeout(&address, SOON)?);
    let mut byte = [0];
    stream.write_all(b"x")?;
    stream.read_exact(&mut byte)
}
