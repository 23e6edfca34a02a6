//! One run of a generator on CPU 1, and what it says about itself.

use anyhow::{Context, Result};

use crate::{
    handshakes, programs,
    stage::{GENERATOR_CPU, Stage},
    workload::{Generator, Listener, Workload},
};

/// What came back.
#[derive(Debug, PartialEq, Eq)]
pub struct Load {
    pub done: u64,
    /// Responses that were wrong or did not come. One makes the round void.
    pub failed: u64,
    /// Of the latency, in wrk's words.
    pub p99: Option<String>,
}

/// Loads the proxy on this port for so many seconds.
pub fn run(stage: &Stage, workload: &Workload, port: u16, seconds: u32) -> Result<Load> {
    let mut words = vec![display(&stage.tools.taskset), "-c".to_owned(), GENERATOR_CPU.to_owned()];
    let mode = match workload.generator {
        Generator::FullHandshakes => Some(handshakes::FULL),
        Generator::ResumedHandshakes => Some(handshakes::RESUME),
        _ => None,
    };
    if let Some(mode) = mode {
        let own = std::env::current_exe()?;
        let arguments = [port.to_string(), workload.connections.to_string(), seconds.to_string(), mode.to_owned()];
        words.extend([display(&own), handshakes::MODE.to_owned()]);
        words.extend(arguments);
        return of_handshakes(&programs::run(&words)?);
    }
    words.extend([display(&stage.tools.wrk), "-t1".to_owned(), format!("-c{}", workload.connections)]);
    words.extend([format!("-d{seconds}s"), "--latency".to_owned()]);
    match workload.generator {
        Generator::WrkClose => words.extend(["-H", "Connection: close"].map(str::to_owned)),
        Generator::WrkUpload => words.extend(["-s".to_owned(), display(&stage.directory.path().join("up.lua"))]),
        _ => {}
    }
    let scheme = if workload.listener == Listener::Tls { "https" } else { "http" };
    words.push(format!("{scheme}://127.0.0.1:{port}{}", workload.path));
    of_wrk(&programs::run(&words)?)
}

fn display(path: &std::path::Path) -> String {
    path.display().to_string()
}

fn of_handshakes(report: &str) -> Result<Load> {
    let numbers: Vec<u64> = report.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [done, failed] = numbers[..] else { anyhow::bail!("not a report of handshakes: {report}") };
    Ok(Load { done, failed, p99: None })
}

fn of_wrk(report: &str) -> Result<Load> {
    let line = |word: &str| report.lines().find(|line| line.contains(word));
    let numbers = |text: &str| -> Vec<u64> {
        text.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
    };
    let done = line(" requests in ").and_then(|line| numbers(line).first().copied());
    let done = done.with_context(|| format!("not a report of wrk: {report}"))?;
    // Its own words hold numbers: "Non-2xx or 3xx responses: 7".
    let bad = line("Non-2xx").and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0);
    let errors: u64 = line("Socket errors").map_or(0, |line| numbers(line).iter().sum());
    let p99 = line(" 99%").and_then(|line| line.split_whitespace().last().map(str::to_owned));
    Ok(Load { done, failed: bad + errors, p99 })
}
