//! Rounds, interleaved A B B A, and the medians of their figures.

use anyhow::Result;

use crate::{load, options::Options, progress::Progress, proxy::Proxy, stage::Stage, workload::Workload};

/// One workload, every proxy.
#[derive(Debug)]
pub struct Comparison {
    pub workload: &'static Workload,
    pub figures: Vec<Figure>,
}

/// One workload, one proxy. Without a round that is good there is no figure.
#[derive(Debug)]
pub struct Figure {
    pub proxy: Proxy,
    pub cost: Option<Spread>,
    pub per_second: f64,
    pub p99: Option<String>,
    /// Rounds that do not count.
    pub void: u32,
    pub failed: u64,
}

#[derive(Debug, Clone, Copy)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Comparison {
    /// The cheapest peer.
    pub fn best_peer(&self) -> Option<(Proxy, f64)> {
        let peers = self.figures.iter().filter(|figure| figure.proxy != Proxy::Sluicegate);
        let costs = peers.filter_map(|figure| Some((figure.proxy, figure.cost?.median)));
        costs.min_by(|(_, a), (_, b)| a.total_cmp(b))
    }

    pub fn of(&self, proxy: Proxy) -> Option<f64> {
        let figure = self.figures.iter().find(|figure| figure.proxy == proxy)?;
        Some(figure.cost?.median)
    }

    /// What a proxy costs, with the best peer as 1.
    pub fn ratio(&self, proxy: Proxy) -> Option<f64> {
        Some(self.of(proxy)? / self.best_peer()?.1)
    }
}

#[derive(Debug, Default)]
struct Rounds {
    costs: Vec<f64>,
    rates: Vec<f64>,
    p99: Option<String>,
    void: u32,
    failed: u64,
}

pub fn compare(stage: &Stage, options: &Options) -> Result<Vec<Comparison>> {
    let rounds = options.rounds * u32::try_from(options.work.len() * Proxy::ALL.len())?;
    let mut progress = Progress::new(rounds);
    let mut comparisons = Vec::new();
    for workload in options.work.iter().copied() {
        let mut all: [Rounds; Proxy::ALL.len()] = Default::default();
        for round in 0..options.rounds {
            let mut turn: Vec<_> = Proxy::ALL.into_iter().zip(&mut all).collect();
            if round % 2 == 1 {
                turn.reverse();
            }
            for (proxy, rounds) in turn {
                progress.begin(&format!("{} {}, round {}", workload.name, proxy.name(), round + 1));
                rounds.add(stage, proxy, workload, options.seconds)?;
            }
        }
        let figures = Proxy::ALL.into_iter().zip(all).map(|(proxy, rounds)| rounds.figure(proxy)).collect();
        let comparison = Comparison { workload, figures };
        progress.clear();
        print(&comparison);
        comparisons.push(comparison);
    }
    Ok(comparisons)
}

impl Rounds {
    /// A fresh process for each round, warm for a second before its time is taken.
    fn add(&mut self, stage: &Stage, proxy: Proxy, workload: &'static Workload, seconds: u32) -> Result<()> {
        let mut running = stage.start(proxy)?;
        let port = running.port(workload.listener);
        load::run(stage, workload, port, 1)?;
        let before = running.server.cpu()?;
        let load = load::run(stage, workload, port, seconds)?;
        let spent = running.server.cpu()?.saturating_sub(before);
        self.failed += load.failed;
        // No time at all: somebody else has answered on its port.
        if load.failed > 0 || load.done == 0 || spent.is_zero() || !running.server.runs() {
            self.void += 1;
            return Ok(());
        }
        self.costs.push(workload.cost(spent.as_secs_f64(), load.done));
        self.rates.push(load.done as f64 / f64::from(seconds));
        self.p99 = load.p99;
        Ok(())
    }

    fn figure(self, proxy: Proxy) -> Figure {
        let per_second = Spread::of(self.rates).map_or(0.0, |rates| rates.median);
        let cost = Spread::of(self.costs);
        Figure { proxy, cost, per_second, p99: self.p99, void: self.void, failed: self.failed }
    }
}

impl Spread {
    /// `None` of nothing.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let (low, high) = (values.get((values.len() - 1) / 2)?, values.get(values.len() / 2)?);
        Some(Self { median: f64::midpoint(*low, *high), least, most })
    }
}

/// The lines of one workload, as soon as they are known.
fn print(comparison: &Comparison) {
    let Comparison { workload, figures } = comparison;
    for Figure { proxy, cost, per_second, p99, void, failed } in figures {
        let cost = cost.map_or_else(
            || "no valid round".to_owned(),
            |cost| format!("{:9.3} {:5} ({:.3}..{:.3})", cost.median, workload.unit(), cost.least, cost.most),
        );
        let ratio = comparison.ratio(*proxy).map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        let p99 = p99.as_deref().unwrap_or("-");
        println!(
            "{:8} {:15} {cost:36} {ratio:>5} of the best peer {per_second:>8.0}/s  p99 {p99:>8}  void {void}, failed {failed}",
            workload.name,
            proxy.name()
        );
    }
}
