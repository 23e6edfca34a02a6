//! A7: connections are spread over the workers also where the kernel's hash does not spread them.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    sync::{Arc, mpsc},
};

use socket2::{Domain, SockAddr, Socket, Type};

use sluicegate::{
    address::Prefixes,
    config::ZeroCopy,
    connection,
    crew::{self, Command, Crew},
    ledger::Ledger,
    load::{self, Text},
    metrics::Registry,
    offence,
    outcome::Outcome,
    rejections::Rejections,
    site::Site,
    tls::acceptor,
    worker::{self, Assignment},
};

use crate::support::{
    Metrics, SOON, Stand, Variant,
    client::{self, connect_from},
    raise_descriptor_limit, wait_for, wait_until,
};

/// Where the clients of the lump come from: nobody else uses it, so its ports are free.
const LUMP: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 77, 7, 1));
const FIRST_PORT: u16 = 10_000;

/// Connections by worker.
fn by_worker(metrics: &Metrics) -> Vec<u64> {
    let mut series: Vec<_> = metrics.select("sluicegate_worker_connections", &[]).collect();
    series.sort_by_key(|series| series.label("worker").unwrap().parse::<usize>().unwrap());
    series.iter().map(|series| series.value as u64).collect()
}

/// Waits until the workers serve this many, and says how many each.
#[track_caller]
fn spread(stand: &Stand, total: usize) -> Vec<u64> {
    let mut last = Vec::new();
    let reached = wait_for(SOON, || {
        last = by_worker(&stand.gate.metrics());
        (last.iter().sum::<u64>() == total as u64).then_some(())
    });
    assert!(reached.is_some(), "{total} connections: {last:?}");
    last
}

#[track_caller]
fn is_even(spread: &[u64]) {
    let (most, total) = (*spread.iter().max().unwrap(), spread.iter().sum::<u64>());
    let workers = spread.len() as u64;
    println!("{spread:?}: the fullest has {:.2} times the mean", (most * workers) as f64 / total as f64);
    assert!(most * workers * 10 <= total * 13, "{spread:?}");
}

/// Accepted, live and by backend: the same number everywhere, whoever serves.
#[track_caller]
fn counts_are_exact(stand: &Stand, live: usize, accepted: usize) {
    let metrics = stand.gate.metrics();
    let count = |name: &str| metrics.count(name, &[]) as usize;
    assert_eq!(count("sluicegate_listener_accepted_total"), accepted);
    assert_eq!(count("sluicegate_firewall_connections_total"), accepted);
    assert_eq!(count("sluicegate_listener_connections"), live);
    assert_eq!(count("sluicegate_backend_connections"), live);
}

fn long_connections_are_spread(variant: Variant) {
    const CONNECTIONS: usize = 1000;
    raise_descriptor_limit();
    let stand = Stand::start(variant);
    let pairs: Vec<_> = (0..CONNECTIONS)
        .map(|number| {
            let source = Ipv4Addr::new(127, 77, 1, 1 + (number % 100) as u8);
            (connect_from(source.into(), stand.gate.address("tcp")), stand.accept())
        })
        .collect();
    is_even(&spread(&stand, CONNECTIONS));
    counts_are_exact(&stand, CONNECTIONS, CONNECTIONS);
    drop(pairs);
    stand.gate.finish();
}

#[test]
fn a7_a_thousand_long_connections_from_100_addresses_are_spread() {
    long_connections_are_spread(Variant { workers: 4, ..Variant::AUTO });
}

#[test]
fn a7_a_thousand_long_connections_over_one_shared_socket_are_spread() {
    long_connections_are_spread(Variant { workers: 4, ..Variant::SHARED_SOCKET });
}

/// A client from [`LUMP`] and this port, which ends by RST, so that the port can be used again at once.
fn from_port(port: u16, address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&SockAddr::from(SocketAddr::new(LUMP, port))).expect("a port that nobody else has");
    socket.connect(&SockAddr::from(address)).expect("a connection");
    let stream = client::bounded(socket.into());
    client::reset_on_close(&stream);
    stream
}

/// Source ports that the kernel gives to the first of two workers, and how many were tried. They are learnt one by one, a few at a time: with so
/// few connections no worker sends any to the other.
fn ports_of_the_first_worker(stand: &Stand, count: usize) -> (Vec<u16>, usize) {
    let mut ports = Vec::new();
    let mut next = FIRST_PORT;
    while ports.len() < count {
        let mut held = Vec::new();
        let mut before = spread(stand, 0);
        for port in next..next + 32 {
            held.push((from_port(port, stand.gate.address("tcp")), stand.accept()));
            let now = spread(stand, held.len());
            if now[0] > before[0] {
                ports.push(port);
            }
            before = now;
        }
        next += 32;
    }
    spread(stand, 0);
    ports.truncate(count);
    (ports, usize::from(next - FIRST_PORT))
}

/// The kernel gives every one of them to the same worker.
#[test]
fn a7_a_lump_of_the_hash_is_spread_at_accept() {
    const COUNT: usize = 160;
    let stand = Stand::start(Variant::AUTO);
    let (ports, tried) = ports_of_the_first_worker(&stand, COUNT);
    let mut pairs: Vec<_> =
        ports.iter().map(|&port| (from_port(port, stand.gate.address("tcp")), stand.accept())).collect();
    is_even(&spread(&stand, COUNT));
    counts_are_exact(&stand, COUNT, tried + COUNT);
    for (client, backend) in &mut pairs {
        client.write_all(b"whoever serves").unwrap();
        let mut said = [0; 14];
        backend.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"whoever serves");
    }
    drop(pairs);
    stand.gate.wait_outcome("client_reset", (tried + COUNT) as u64);
    stand.gate.finish();
}

/// Clients are sent to a worker while it stops: each is served to its end by that worker, or given back.
#[test]
fn a7_no_client_is_lost_between_two_workers_at_a_stop() {
    const CLIENTS: usize = 400;
    let text = "[listener.tcp]\nbind = \"127.0.0.1:0\"\npool = \"web\"\n[pool.web]\nbackends = [\"127.0.0.1:1\"]\n";
    let provider = Arc::new(acceptor::provider());
    let source = Text { path: PathBuf::from("sluicegate.toml"), text: text.to_owned() };
    let loaded = load::load(&source, &provider).unwrap();
    let registry = Arc::new(Registry::new(2));
    let site = Site::build(&loaded, CLIENTS, &provider, &registry, &Ledger::new(offence::line().0), None).unwrap();
    let frontend = &site.frontends[0];
    let (handles, mut inboxes): (Vec<_>, Vec<_>) = (0..2).map(|_| crew::channel()).unzip();
    let assignment = Assignment {
        index: 1,
        sockets: Vec::new(),
        pipes: 0,
        zero_copy: ZeroCopy::Off,
        rustls_records: false,
        registry: Arc::clone(&registry),
        rejections: Arc::new(Rejections::new(Prefixes::DEFAULT)),
        crew: Arc::new(Crew::new(handles.clone(), Arc::clone(&registry))),
        log: None,
        seed: 1,
    };
    let (ready, started) = mpsc::channel();
    let thread = worker::start(assignment, inboxes.pop().unwrap(), ready).unwrap();
    started.recv().unwrap().unwrap();

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut clients, mut admitted) = (Vec::new(), Vec::new());
    for _ in 0..CLIENTS {
        clients.push(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        let (socket, client) = listener.accept().unwrap();
        socket.set_nonblocking(true).unwrap();
        admitted.push(connection::admit(socket.into(), client, frontend, 0).expect("a place"));
    }
    let mut back = Vec::new();
    for (number, client) in admitted.into_iter().enumerate() {
        if number == CLIENTS / 4 {
            handles[1].send(Command::Stop).unwrap();
        }
        if number == CLIENTS / 4 * 3 {
            wait_until(SOON, "a closed inbox", || handles[1].send(Command::Stop).is_err());
        }
        back.extend(handles[1].adopt(client).err());
    }
    thread.join().unwrap();
    let counted = frontend.cells.connections();
    println!("{} given back, {} ended by the worker", back.len(), CLIENTS - back.len());
    assert!((CLIENTS / 4..=CLIENTS / 4 * 3).contains(&back.len()));
    assert_eq!((counted.accepted, counted.live), (CLIENTS as u64, back.len() as u64));
    assert!(counted.closed[Outcome::Drained as usize] + counted.closed[Outcome::ConnectFailed as usize] > 0);
    assert_eq!(frontend.limits[0].taken(), back.len());
    drop(back);
    assert_eq!(frontend.limits[0].taken(), 0);
    assert_eq!(registry.workers().sum(|cells| cells.connections.value()), 0);
}
