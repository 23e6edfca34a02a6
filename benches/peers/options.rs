//! The command line.

use std::path::PathBuf;

use clap::Parser;

use crate::workload::{WORKLOADS, Workload};

/// CPU time per unit of work of sluicegate, haproxy and nginx stream. Without options: every workload and the memory
/// of idle connections.
#[derive(Debug, Parser)]
#[command(name = "cargo bench --bench peers --", no_binary_name = true)]
pub struct Options {
    /// Only these workloads: keep,conn,64k,1m,16m,up,tlskeep,tls64k,tls1m,tlsup,full,resume
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = Workload::named)]
    pub work: Vec<&'static Workload>,
    /// Rounds of each workload
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Length of a round, after one second to warm up
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub seconds: u32,
    /// One round of one second: to see that it works, not to quote
    #[arg(long)]
    pub quick: bool,
    /// The memory of idle connections; alone or with --work
    #[arg(long)]
    pub idle: bool,
    /// Where latest.md and latest.svg go
    #[arg(long, value_name = "DIR", default_value = "docs/benchmarks")]
    pub out: PathBuf,
}

impl Options {
    /// Reads the arguments; ends the process when they are wrong or ask for help.
    pub fn read(arguments: &[String]) -> Self {
        let mut options = Self::parse_from(arguments);
        if options.quick {
            (options.rounds, options.seconds) = (1, 1);
        }
        if options.work.is_empty() && !options.idle {
            options.work = WORKLOADS.iter().collect();
            options.idle = true;
        }
        options
    }
}
