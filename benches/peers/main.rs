//! CPU time per unit of work against haproxy and nginx under wrk, side by side on this machine.
//! `cargo bench --bench peers`, options after `--`; what the figures mean: `docs/benchmarks/README.md`.
//!
//! Each proxy has one worker on CPU 0; the generators and three nginx backends are on CPU 1. Rounds are interleaved
//! (A B B A), a figure is the median of the CPU time of all threads of the proxy divided by what the generator counted.

mod chart;
mod handshakes;
mod idle;
mod load;
mod machine;
mod measure;
mod options;
mod programs;
mod progress;
mod proxy;
mod report;
mod stage;
mod workload;

use std::process::ExitCode;

use anyhow::{Context, Result};

use self::{options::Options, programs::Tools, report::Report, stage::Stage};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let result = match arguments.split_first() {
        Some((mode, rest)) if mode == handshakes::MODE => handshakes::run(rest),
        _ => peers(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peers: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn peers(arguments: &[String]) -> Result<()> {
    let options = Options::read(arguments);
    let tools = Tools::find()?;
    let machine = machine::Machine::look(&tools, arguments);
    machine.warn();
    programs::end_on_signals()?;
    let stage = Stage::set_up(tools)?;
    let comparisons = measure::compare(&stage, &options)?;
    let memory = if options.idle { idle::measure(&stage)? } else { Vec::new() };
    let report = Report { machine, options: &options, comparisons, memory, configurations: stage.configurations() };
    drop(stage);
    std::fs::create_dir_all(&options.out).with_context(|| options.out.display().to_string())?;
    for (name, text) in [("latest.md", report.markdown()), ("latest.svg", chart::draw(&report))] {
        let path = options.out.join(name);
        std::fs::write(&path, text).with_context(|| path.display().to_string())?;
        println!("written: {}", path.display());
    }
    Ok(())
}
