//! F8, F9, F10: each source has its limits, exact over all workers, whatever becomes of its connections.

use std::{
    io::Write,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use socket2::{Domain, SockAddr, Socket, Type};

use super::{edit, limited, open, plan, run, source, text, wait_empty};
use crate::support::{
    Backend, Gate, Lineage, Namespace, SOON, Variant,
    backend::Refusing,
    client,
    gate::{https, pool, tcp, word},
    wait_until,
};

#[test]
fn f9_a_source_has_exactly_its_limit_with_any_number_of_workers() {
    const LIMIT: usize = 100;
    let backend = Backend::greeting(b"hi");
    for workers in [1, 2, 8] {
        let variant = Variant { workers, ..Variant::chosen() };
        let gate = plan(&backend, &format!("[firewall.limits]\nconnections = {LIMIT}\n")).variant(variant).start();
        let address = gate.address("tcp");
        for round in 0..2 {
            let (served, reset) = open(source(9), address, LIMIT + 30);
            assert_eq!((served.len(), reset), (LIMIT, 30), "{workers} workers, round {round}");
            let (others, none) = open(source(10), address, 5);
            assert_eq!((others.len(), none), (5, 0), "another source");
            let live = gate.metrics().count("sluicegate_listener_connections", &[]);
            assert_eq!(live, LIMIT as u64 + 5);
            drop((served, others));
            wait_empty(&gate);
        }
        let metrics = gate.wait_outcome("limited", 60);
        assert_eq!((limited(&metrics, "connections"), limited(&metrics, "rate")), (60, 0));
        assert_eq!(metrics.count("sluicegate_limits_sources", &[]), 2);
        gate.finish();
    }
}

/// The rest of a burst comes with time: nobody gets more than that.
#[test]
fn f9_connections_come_no_faster_than_the_rate() {
    const BURST: usize = 20;
    let backend = Backend::greeting(b"hi");
    let gate = plan(&backend, "[firewall.limits]\nnew_per_second = 2\nburst = 20\n").start();
    let begin = Instant::now();
    let (served, reset) = open(source(9), gate.address("tcp"), 60);
    let most = BURST + 2 * begin.elapsed().as_secs() as usize + 2;
    println!("{} of 60 within {:?}", served.len(), begin.elapsed());
    assert!((BURST..=most).contains(&served.len()), "{} served, {most} would be right", served.len());
    let metrics = gate.wait_outcome("limited", reset as u64);
    assert_eq!((limited(&metrics, "rate"), limited(&metrics, "connections")), (reset as u64, 0));
    wait_until(SOON, "the next token", || !open(source(9), gate.address("tcp"), 1).0.is_empty());
    let recorded = || gate.records().into_iter().filter(|record| record["outcome"] == "limited").collect::<Vec<_>>();
    wait_until(SOON, "the record of the first", || recorded().len() == 1);
    let record = &recorded()[0];
    assert!(word(record, "client").starts_with("127.0.0.9:"), "{record}");
    assert_eq!(word(record, "listener"), "tcp");
    drop(served);
    gate.finish();
}

#[test]
fn f8_addresses_of_one_network_share_a_limit() {
    let backend = Backend::greeting(b"hi");
    let gate = plan(&backend, "[firewall.limits]\nconnections = 10\nipv4_prefix = 24\n").start();
    let mut held = Vec::new();
    let mut served = [0; 2];
    for last in 1..=200 {
        for (network, served) in served.iter_mut().enumerate() {
            let (more, _) = open([127, 8, network as u8, last].into(), gate.address("tcp"), 1);
            *served += more.len();
            held.extend(more);
        }
    }
    assert_eq!(served, [10, 10], "n = 400");
    drop(held);
    gate.finish();
}

/// A client of one of many addresses, which is no address of an interface.
fn connect_v6(from: Ipv6Addr, to: SocketAddr) -> Option<std::net::TcpStream> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
    socket.set_freebind_v6(true).unwrap();
    socket.bind(&SockAddr::from(SocketAddr::new(from.into(), 0))).unwrap();
    // A reset may come before the connect has returned.
    socket.connect(&SockAddr::from(to)).ok().map(|()| client::bounded(socket.into()))
}

#[test]
fn f8_a_thousand_addresses_of_one_64_share_a_limit_and_two_64s_do_not() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.own("2001:db8::/32");
    namespace.within(|| {
        let backend = Backend::greeting(b"hi");
        let listener = "[listener.tcp]\nbind = \"[::]:0\"\npool = \"web\"\n";
        let limits = "[firewall.limits]\nconnections = 10\n";
        let gate = Gate::start(&[listener, &pool("", &[backend.address]), limits].concat());
        let to = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), gate.address("tcp").port());
        let mut held = Vec::new();
        let served = [1, 2].map(|network| {
            let ask = |host| {
                let from = Ipv6Addr::new(0x2001, 0xdb8, 0, network, 0, 0, 0, host);
                let mut stream = connect_v6(from, to)?;
                std::io::Read::read_exact(&mut stream, &mut [0; 2]).is_ok().then_some(stream)
            };
            let served: Vec<_> = (1..=1_000).filter_map(ask).collect();
            let count = served.len();
            held.extend(served);
            count
        });
        assert_eq!(served, [10, 10], "of 1,000 each");
        assert_eq!(limited(&gate.metrics(), "connections"), 1_980);
        drop(held);
        gate.finish();
    });
}

#[test]
fn listeners_have_limits_of_their_own_share_them_or_have_none() {
    let backend = Backend::greeting(b"hi");
    let listener =
        |name: &str, more: &str| format!("[listener.{name}]\nbind = \"127.0.0.1:0\"\npool = \"web\"\n{more}\n");
    let toml = [
        &listener("a", ""),
        &listener("b", ""),
        &listener("own", "limits = { connections = 2 }"),
        &listener("off", "limits = \"off\""),
        &pool("", &[backend.address]),
        "[firewall.limits]\nconnections = 5\nexempt = [\"127.0.0.32/28\"]\n",
    ];
    let gate = Gate::start(&toml.concat());
    let mut held = Vec::new();
    for (listener, expected) in [("a", 3), ("b", 2), ("own", 2), ("off", 10)] {
        let (served, _) = open(source(9), gate.address(listener), if listener == "a" { 3 } else { 10 });
        assert_eq!(served.len(), expected, "{listener}");
        held.extend(served);
    }
    for listener in ["a", "own"] {
        let (served, none) = open(source(40), gate.address(listener), 10);
        assert_eq!((served.len(), none), (10, 0), "exempt at {listener}");
        held.extend(served);
    }
    let metrics = gate.metrics();
    let at = |listener| metrics.count("sluicegate_limited_connections_total", &[("listener", listener)]);
    assert_eq!(["a", "b", "own", "off"].map(at), [0, 8, 8, 0]);
    drop(held);
    gate.finish();
}

/// A source with two places, whose connections end in every way there is: each gives its place back.
#[test]
fn f10_every_end_gives_the_place_back() {
    let (backend, refusing) = (Backend::greeting(b"hi"), Refusing::new());
    let (tls, second) = (https(""), "[listener.dead]\nbind = \"127.0.0.1:0\"\npool = \"dead\"\n");
    let dead = format!("[pool.dead]\nbackends = [\"{}\"]\n", refusing.address);
    let limits = "[firewall.limits]\nconnections = 2\n[timeouts]\nhandshake = \"300ms\"\nidle = \"300ms\"\n";
    let toml = [&tcp(""), &*tls, second, &pool("", &[backend.address]), &dead, limits].concat();
    let gate = Gate::plan(&toml).admin("socket = \"admin.sock\"").start();
    let address = |listener| gate.address(listener);
    for round in 0..10 {
        match round {
            0 => drop(open(source(9), address("tcp"), 2)),
            1 => open(source(9), address("tcp"), 2).0.into_iter().for_each(client::reset),
            // Idle.
            2 => {
                let (mut served, _) = open(source(9), address("tcp"), 2);
                for stream in &mut served {
                    client::read_all(stream);
                }
            }
            // No backend.
            3 => (0..2).for_each(|_| drop(client::read_all(&mut client::connect_from(source(9), address("dead"))))),
            // The whole time of a handshake, and none at all.
            4 => drop(client::read_all(&mut client::connect_from(source(9), address("https")))),
            5 => drop(client::connect_from(source(9), address("https"))),
            // No TLS.
            6 => {
                let mut stream = client::connect_from(source(9), address("https"));
                stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
                drop(client::read_all(&mut stream));
            }
            7 => {
                let (mut served, _) = open(source(9), address("tcp"), 2);
                text(&gate, &["kill", "--client", "127.0.0.9"]);
                for stream in &mut served {
                    client::read_all(stream);
                }
            }
            // Turned away, too.
            8 => drop(open(source(9), address("tcp"), 20)),
            _ => {}
        }
        wait_empty(&gate);
        let (served, reset) = open(source(9), address("tcp"), 3);
        assert_eq!((served.len(), reset), (2, 1), "after round {round}");
        drop(served);
        wait_empty(&gate);
    }
    gate.finish();
}

/// L6: counts go on over a reload, and changed numbers hold for who comes next.
#[test]
fn l6_counts_survive_a_reload() {
    let backend = Backend::greeting(b"hi");
    let gate = plan(&backend, "[firewall.limits]\nconnections = 5\n").start();
    let address = gate.address("tcp");
    let (mut held, _) = open(source(9), address, 5);
    for (from, to, free) in [
        ("[firewall.limits]\n", "[firewall.limits]\nexempt = \"127.0.0.77\"\n", 0),
        ("connections = 5", "connections = 3", 0),
        ("connections = 3", "connections = 7", 2),
    ] {
        edit(&gate, from, to);
        assert_eq!(run(&gate, &["reload"]).code, Some(0));
        let (more, _) = open(source(9), address, 10);
        assert_eq!(more.len(), free, "{to}");
        held.extend(more);
    }
    // With a limit that is lower than what there is, nobody comes before enough have gone.
    edit(&gate, "connections = 7", "connections = 2");
    assert_eq!(run(&gate, &["reload"]).code, Some(0));
    held.truncate(2);
    gate.wait_metrics("two", |m| m.count("sluicegate_listener_connections", &[]) == 2);
    assert!(open(source(9), address, 3).0.is_empty());
    held.truncate(1);
    gate.wait_metrics("one", |m| m.count("sluicegate_listener_connections", &[]) == 1);
    let (more, _) = open(source(9), address, 3);
    assert_eq!(more.len(), 1);
    // And without limits nobody counts.
    edit(&gate, "connections = 2\n", "");
    assert_eq!(run(&gate, &["reload"]).code, Some(0));
    let (many, none) = open(source(9), address, 20);
    assert_eq!((many.len(), none), (20, 0));
    drop((held, more, many));
    gate.finish();
}

/// The new process counts its own connections: those of the old one are not among them.
#[test]
fn after_an_upgrade_counts_begin_anew_and_counters_do_not() {
    let backend = Backend::greeting(b"hi");
    let toml =
        [&tcp(""), &*pool("", &[backend.address]), "[timeouts]\ndrain = \"8s\"\n[firewall.limits]\nconnections = 3\n"];
    let mut lineage = Lineage::start(Gate::plan(&toml.concat()));
    let address = lineage.gate.address("tcp");
    let (before, mut refused) = open(source(9), address, 5);
    assert_eq!((before.len(), refused), (3, 2));
    lineage.upgrade();
    // For a moment the old one, which is full, still takes clients from the sockets that both have.
    let mut after = Vec::new();
    wait_until(SOON, "places in the new process", || {
        let (served, reset) = open(source(9), address, 1);
        after.extend(served);
        refused += reset;
        after.len() == 3
    });
    let (none, reset) = open(source(9), address, 3);
    assert_eq!((none.len(), reset), (0, 3));
    refused += reset;
    lineage.gate.wait_metrics("the counts of both", |m| limited(m, "connections") == refused as u64);
    drop((before, after));
    lineage.wait_alone(SOON);
    lineage.finish();
}

#[test]
fn explain_tells_the_limits_of_a_source() {
    let backend = Backend::greeting(b"hi");
    let limits = "[firewall.limits]\nconnections = 5\nnew_per_second = 7\nburst = 9\nexempt = [\"127.0.0.32/28\"]\n";
    let plan = plan(&backend, limits);
    plan.write();
    let explain = |from: IpAddr| {
        let words = ["explain", "--config", "sluicegate.toml", "--from", &from.to_string()];
        crate::support::Process::run(&words, plan.path(), SOON).stdout
    };
    let told = explain(source(9));
    for words in ["of 127.0.0.9/32: 5 connections", "7 new per second", "and 9 at once", "`sluicegate bans`"] {
        assert!(told.contains(words), "{words}: {told}");
    }
    let line = told.lines().find(|line| line.contains("5 connections")).unwrap();
    assert!(line.trim_end().rsplit_once(':').is_some_and(|(file, _)| file.ends_with("sluicegate.toml")), "{line}");
    let told = explain(source(40));
    assert!(told.contains("127.0.0.32/28 is exempt") && !told.contains("7 new"), "{told}");
}

/// A guard gives back what it has whatever it is dropped by.
#[test]
fn f10_a_panic_gives_the_place_back() {
    use std::num::NonZeroU32;

    use sluicegate::{
        address::Prefixes,
        config,
        limits::{Answer, SourceLimits, Sources},
    };
    let config = config::SourceLimits {
        connections: NonZeroU32::new(1),
        rate: None,
        exempt: Vec::new(),
        prefixes: Prefixes::DEFAULT,
    };
    let limits = SourceLimits::new(&config, Sources::new(Prefixes::DEFAULT, 1_024, [0; 16]));
    for _ in 0..3 {
        let ended = std::thread::scope(|scope| {
            let work = || {
                let Answer::Place { .. } = limits.take(source(9), Duration::ZERO) else { return };
                panic!("a bug, ordered by the test");
            };
            scope.spawn(work).join()
        });
        assert!(ended.is_err(), "there was a place");
    }
}
