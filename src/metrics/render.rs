//! A scrape: every cell summed, every gauge set, written as text.
//!
//! What belongs to the process goes through the exporter, whose recorder lives for one scrape: there is no upkeep to run,
//! and nothing stale. What grows with the configuration is written line by line: a thousand backends have 17,000 series,
//! and registering each of them for one answer took ten times as long as writing it.

use metrics::{Label as Pair, counter, gauge};
use metrics_exporter_prometheus::PrometheusBuilder;
use metrics_process::Collector;

use super::{
    cells::{ListenerCells, PerWorker},
    exposition::{Exposition, Format},
    gauges::Gauges,
    labels::{
        AcceptError, CheckResult, ConnectFailure, Direction, Fallback, HandshakeFailure, Label, RelayPath, Resumption,
        Transition,
    },
    registry::Registry,
    sources::{BanKind, LimitReason},
};
use crate::{
    config::TlsVersion,
    outcome::Outcome,
    proxy_protocol::{Failure, Version},
};

/// Everything we know, in the wanted format. Takes time (it reads `/proc` for `process_*`), never waits.
pub fn render(registry: &Registry, gauges: &Gauges, format: Format) -> String {
    let recorder = PrometheusBuilder::new().build_recorder();
    metrics::with_local_recorder(&recorder, || {
        process();
        relay(registry);
        house(registry);
    });
    let mut exposition = described();
    exposition.add(&recorder.handle().render());
    exposition.make_counter("process_cpu_seconds_total");
    let to = &mut exposition;
    listeners(registry, to);
    firewall(registry, to);
    pools(registry, to);
    checks(registry, to);
    set(gauges, to);
    histograms(registry, to);
    exposition.write(format)
}

/// Name and help of each counter. The names are the contract: dashboards and alerts depend on them.
const COUNTERS: [(&str, &str); 25] = [
    ("sluicegate_listener_accepted_total", "Connections accepted, the denied ones too."),
    ("sluicegate_listener_received_bytes_total", "Bytes received from clients, after decryption."),
    ("sluicegate_listener_sent_bytes_total", "Bytes sent to clients, before encryption."),
    ("sluicegate_accept_errors_total", "Failed accepts."),
    ("sluicegate_connections_closed_total", "Ended connections, by how they ended."),
    ("sluicegate_firewall_connections_total", "Connections by the firewall rule that decided, or would have."),
    ("sluicegate_limited_connections_total", "Clients turned away for what their source does."),
    ("sluicegate_limits_evictions_total", "Idle sources forgotten to make room for another one."),
    ("sluicegate_limits_uncounted_total", "Clients that no limit counts, for want of room for their source."),
    ("sluicegate_bans_total", "Bans made."),
    ("sluicegate_firewall_offloaded_packets_total", "Packets that the kernel has denied, by the firewall rule."),
    ("sluicegate_tls_handshakes_total", "Completed TLS handshakes with clients."),
    ("sluicegate_tls_handshake_failures_total", "TLS handshakes with clients that were not completed."),
    ("sluicegate_proxy_headers_total", "PROXY headers from balancers in front of this one."),
    ("sluicegate_proxy_header_failures_total", "Connections without a good PROXY header where one is required."),
    ("sluicegate_relay_bytes_total", "Bytes relayed, by path and direction."),
    ("sluicegate_relay_fallbacks_total", "Relays that wanted one path and took another."),
    ("sluicegate_pool_retries_total", "Further backends tried after a failed connect."),
    ("sluicegate_backend_connections_total", "Connections made to the backend."),
    ("sluicegate_backend_connect_failures_total", "Connects to the backend that failed."),
    ("sluicegate_health_checks_total", "Health checks of the backend, by what they found."),
    ("sluicegate_backend_transitions_total", "Changes of the backend's health."),
    ("sluicegate_config_reloads_total", "Configurations given to the running process."),
    ("sluicegate_panics_total", "Bugs of ours that ended what they happened in: a connection, a check, an answer."),
    (
        "sluicegate_log_records_dropped_total",
        "Access log records lost because the log was full or could not be written.",
    ),
];

/// Name and help of each gauge.
const GAUGES: [(&str, &str); 19] = [
    ("sluicegate_build_info", "Always 1; the labels tell the version and its compiler."),
    ("sluicegate_listener_connections", "Live client connections."),
    ("sluicegate_listener_connections_limit", "Live client connections the listener may have."),
    ("sluicegate_tls_handshakes_in_progress", "TLS handshakes with clients that are not complete yet."),
    ("sluicegate_proxy_headers_in_progress", "PROXY headers that are not complete yet."),
    ("sluicegate_limits_sources", "Sources of clients that the limits know."),
    ("sluicegate_bans_in_force", "Bans in force."),
    ("sluicegate_firewall_prefixes", "Networks a firewall rule was loaded with."),
    ("sluicegate_firewall_offload_up", "1 when the kernel denies what the firewall denies."),
    ("sluicegate_tls_certificate_not_after_timestamp_seconds", "When the certificate expires, in Unix seconds."),
    ("sluicegate_worker_connections", "Live client connections, by the worker that serves them."),
    ("sluicegate_pipes", "Kernel pipes of the splice relay."),
    ("sluicegate_pool_backends", "Backends of the pool, by state."),
    ("sluicegate_pool_queued_connections", "Clients that wait for a backend with room."),
    ("sluicegate_backend_up", "1 when the backend takes new connections."),
    ("sluicegate_backend_weight", "Weight of the backend."),
    ("sluicegate_backend_connections", "Live connections to the backend."),
    ("sluicegate_config_last_reload_successful", "1 when the last configuration was applied."),
    ("sluicegate_config_snapshots", "Configurations in use: the newest, and older ones that connections keep."),
];

fn described() -> Exposition {
    let mut exposition = Exposition::default();
    for (name, help) in COUNTERS {
        exposition.describe(name, "counter", help);
    }
    for (name, help) in GAUGES {
        exposition.describe(name, "gauge", help);
    }
    exposition
}

fn process() {
    let collector = Collector::default();
    collector.describe();
    collector.collect();
}

fn listeners(registry: &Registry, to: &mut Exposition) {
    for (name, cells) in registry.listeners() {
        let listener = ("listener", name.as_str());
        let connections = cells.connections();
        to.sample("sluicegate_listener_accepted_total", &[listener], connections.accepted);
        to.sample("sluicegate_listener_connections", &[listener], connections.live);
        for (outcome, closed) in Outcome::ALL.into_iter().zip(connections.closed) {
            to.sample("sluicegate_connections_closed_total", &[listener, ("outcome", outcome.as_str())], closed);
        }
        let received = cells.sum(|cells| cells.received_bytes.value());
        to.sample("sluicegate_listener_received_bytes_total", &[listener], received);
        let sent = cells.sum(|cells| cells.sent_bytes.value());
        to.sample("sluicegate_listener_sent_bytes_total", &[listener], sent);
        for reason in AcceptError::ALL {
            let errors = cells.sum(|cells| cells.accept_errors.at(*reason).value());
            to.sample("sluicegate_accept_errors_total", &[listener, ("reason", reason.as_str())], errors);
        }
        for reason in HandshakeFailure::ALL {
            let failures = cells.sum(|cells| cells.tls_failures.at(*reason).value());
            to.sample("sluicegate_tls_handshake_failures_total", &[listener, ("reason", reason.as_str())], failures);
        }
        for reason in LimitReason::ALL {
            let limited = cells.sum(|cells| cells.limited.at(*reason).value());
            to.sample("sluicegate_limited_connections_total", &[listener, ("reason", reason.as_str())], limited);
        }
        let (evicted, uncounted) =
            (cells.sum(|cells| cells.limits_evictions.value()), cells.sum(|cells| cells.limits_uncounted.value()));
        to.sample("sluicegate_limits_evictions_total", &[listener], evicted);
        to.sample("sluicegate_limits_uncounted_total", &[listener], uncounted);
        let in_progress = cells.sum(|cells| cells.tls_in_progress.value());
        to.sample("sluicegate_tls_handshakes_in_progress", &[listener], in_progress);
        for version in TlsVersion::ALL {
            for resumption in Resumption::ALL {
                let labels = [listener, ("version", version.as_str()), ("resumed", resumption.as_str())];
                let done = cells.sum(|cells| cells.tls_handshakes(*version, *resumption).value());
                to.sample("sluicegate_tls_handshakes_total", &labels, done);
            }
        }
        proxy_headers(listener, &cells, to);
    }
}

fn proxy_headers(listener: (&str, &str), cells: &PerWorker<ListenerCells>, to: &mut Exposition) {
    for version in Version::ALL {
        let headers = cells.sum(|cells| cells.proxy_headers.at(*version).value());
        to.sample("sluicegate_proxy_headers_total", &[listener, ("version", version.as_str())], headers);
    }
    for reason in Failure::ALL {
        let failures = cells.sum(|cells| cells.proxy_failures.at(*reason).value());
        to.sample("sluicegate_proxy_header_failures_total", &[listener, ("reason", reason.as_str())], failures);
    }
    let in_progress = cells.sum(|cells| cells.proxy_in_progress.value());
    to.sample("sluicegate_proxy_headers_in_progress", &[listener], in_progress);
}

fn firewall(registry: &Registry, to: &mut Exposition) {
    for ((rule, action), cells) in registry.rules() {
        let labels = [("rule", rule.as_str()), ("action", action.as_str())];
        let connections = cells.sum(|cells| cells.connections.value());
        to.sample("sluicegate_firewall_connections_total", &labels, connections);
    }
    for kind in BanKind::ALL {
        let bans = registry.bans().sum(|cells| cells.bans.at(*kind).value());
        to.sample("sluicegate_bans_total", &[("kind", kind.as_str())], bans);
    }
    for (rule, cells) in registry.all_offloaded() {
        let packets = cells.sum(|cells| cells.packets.value());
        to.sample("sluicegate_firewall_offloaded_packets_total", &[("rule", rule.as_str())], packets);
    }
    to.sample("sluicegate_firewall_offload_up", &[], u8::from(registry.offload_is_up()));
}

fn relay(registry: &Registry) {
    let workers = registry.workers();
    for path in RelayPath::ALL {
        for direction in Direction::ALL {
            let labels = [("path", path.as_str()), ("direction", direction.as_str())];
            let bytes = workers.sum(|cells| cells.relay_bytes(*path, *direction).value());
            count("sluicegate_relay_bytes_total", &labels, bytes);
        }
    }
    for reason in Fallback::ALL {
        let labels =
            [("from", RelayPath::Splice.as_str()), ("to", RelayPath::Copy.as_str()), ("reason", reason.as_str())];
        let fallbacks = workers.sum(|cells| cells.fallbacks.at(*reason).value());
        count("sluicegate_relay_fallbacks_total", &labels, fallbacks);
    }
    for (worker, cells) in workers.own().enumerate() {
        let labels = [("worker", &*worker.to_string())];
        show("sluicegate_worker_connections", &labels, cells.connections.value() as f64);
    }
    show("sluicegate_pipes", &[("state", "in_use")], workers.sum(|cells| cells.pipes_in_use.value()) as f64);
    show("sluicegate_pipes", &[("state", "pooled")], workers.sum(|cells| cells.pipes_pooled.value()) as f64);
}

fn pools(registry: &Registry, to: &mut Exposition) {
    for (pool, cells) in registry.pools() {
        let retries = cells.sum(|cells| cells.retries.value());
        to.sample("sluicegate_pool_retries_total", &[("pool", &pool)], retries);
    }
    for ((pool, backend), cells) in registry.backends() {
        let (pool, backend) = (("pool", pool.as_str()), ("backend", backend.as_str()));
        let connections = cells.sum(|cells| cells.connections.value());
        to.sample("sluicegate_backend_connections_total", &[pool, backend], connections);
        for reason in ConnectFailure::ALL {
            let labels = [pool, backend, ("reason", reason.as_str())];
            let failures = cells.sum(|cells| cells.connect_failures.at(*reason).value());
            to.sample("sluicegate_backend_connect_failures_total", &labels, failures);
        }
    }
}

fn checks(registry: &Registry, to: &mut Exposition) {
    for ((pool, backend), cells) in registry.all_checks() {
        let (pool, backend) = (("pool", pool.as_str()), ("backend", backend.as_str()));
        for result in CheckResult::ALL {
            let labels = [pool, backend, ("result", result.as_str())];
            to.sample("sluicegate_health_checks_total", &labels, cells.sum(|cells| cells.checks.at(*result).value()));
        }
        for state in Transition::ALL {
            let labels = [pool, backend, ("to", state.as_str())];
            let transitions = cells.sum(|cells| cells.transitions.at(*state).value());
            to.sample("sluicegate_backend_transitions_total", &labels, transitions);
        }
    }
}

/// What belongs to the process and not to a part of it.
fn house(registry: &Registry) {
    let labels = [("version", env!("CARGO_PKG_VERSION")), ("rustc", env!("SLUICEGATE_RUSTC"))];
    show("sluicegate_build_info", &labels, 1.0);
    let reloads = registry.reloads();
    count("sluicegate_config_reloads_total", &[("result", "applied")], reloads.applied);
    count("sluicegate_config_reloads_total", &[("result", "refused")], reloads.refused);
    show("sluicegate_config_last_reload_successful", &[], f64::from(u8::from(reloads.last_successful)));
    show("sluicegate_config_snapshots", &[], registry.generations() as f64);
    count("sluicegate_log_records_dropped_total", &[], registry.records_dropped());
    count("sluicegate_panics_total", &[], registry.panics());
}

fn set(gauges: &Gauges, to: &mut Exposition) {
    for listener in &gauges.listeners {
        let labels = [("listener", listener.name.as_str())];
        to.sample("sluicegate_listener_connections_limit", &labels, listener.connections_limit);
    }
    for pool in &gauges.pools {
        to.sample("sluicegate_pool_queued_connections", &[("pool", &pool.name)], pool.queued);
        let states = [("up", pool.up), ("down", pool.down), ("draining", pool.draining), ("ejected", pool.ejected)];
        for (state, backends) in states {
            to.sample("sluicegate_pool_backends", &[("pool", &pool.name), ("state", state)], backends);
        }
    }
    for backend in &gauges.backends {
        let labels = [("pool", backend.pool.as_str()), ("backend", backend.name.as_str())];
        to.sample("sluicegate_backend_up", &labels, u8::from(backend.up));
        to.sample("sluicegate_backend_weight", &labels, backend.weight);
        to.sample("sluicegate_backend_connections", &labels, backend.connections);
    }
    for certificate in &gauges.certificates {
        let labels = [("certificate", certificate.name.as_str())];
        to.sample("sluicegate_tls_certificate_not_after_timestamp_seconds", &labels, certificate.not_after);
    }
    if let Some(known) = gauges.sources {
        to.sample("sluicegate_limits_sources", &[], known.sources);
        for (kind, bans) in [(BanKind::Manual, known.manual), (BanKind::Automatic, known.automatic)] {
            to.sample("sluicegate_bans_in_force", &[("kind", kind.as_str())], bans);
        }
    }
    for rule in &gauges.firewall {
        for (family, prefixes) in [("v4", rule.v4), ("v6", rule.v6)] {
            to.sample("sluicegate_firewall_prefixes", &[("rule", &rule.rule), ("family", family)], prefixes);
        }
    }
}

fn histograms(registry: &Registry, exposition: &mut Exposition) {
    for (name, cells) in registry.listeners() {
        let label = ("listener", name.as_str());
        if let Some(snapshot) = cells.merged(|cells| &cells.duration) {
            let help = "From accept to close, in seconds.";
            exposition.histogram("sluicegate_connection_duration_seconds", help, label, &snapshot);
        }
        if let Some(snapshot) = cells.merged(|cells| &cells.tls_duration) {
            let help = "Completed TLS handshakes with clients, in seconds.";
            exposition.histogram("sluicegate_tls_handshake_duration_seconds", help, label, &snapshot);
        }
    }
    for (name, cells) in registry.pools() {
        if let Some(snapshot) = cells.merged(|cells| &cells.connect_duration) {
            let help = "Successful connects to backends, in seconds.";
            exposition.histogram("sluicegate_backend_connect_duration_seconds", help, ("pool", &name), &snapshot);
        }
    }
}

fn count(name: &'static str, labels: &[(&'static str, &str)], value: u64) {
    counter!(name, pairs(labels)).absolute(value);
}

fn show(name: &'static str, labels: &[(&'static str, &str)], value: f64) {
    gauge!(name, pairs(labels)).set(value);
}

fn pairs(labels: &[(&'static str, &str)]) -> Vec<Pair> {
    labels.iter().map(|(key, value)| Pair::new(*key, (*value).to_owned())).collect()
}

#[cfg(test)]
mod tests;
