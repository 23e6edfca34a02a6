//! What the host does to measurements: pauses in which nothing of this machine runs.

use std::{
    io::{self, Write},
    panic,
    sync::{Mutex, Once, PoisonError},
    thread,
    time::{Duration, Instant},
};

const PERIOD: Duration = Duration::from_millis(10);

/// Later than this is no jitter of a busy machine any more.
const NOTABLE: Duration = Duration::from_millis(30);

/// How long a pause counts.
const RECENT: Duration = Duration::from_secs(15);

/// When pauses ended, and what they took.
static PAUSES: Mutex<Vec<(Instant, Duration)>> = Mutex::new(Vec::new());

/// A bound for something that has just been measured: `time`, and what the host has held everything up meanwhile. The
/// measure is a thread that does nothing but look at the clock.
pub fn patient(time: Duration) -> Duration {
    let pauses = PAUSES.lock().unwrap_or_else(PoisonError::into_inner);
    let recent = pauses.iter().filter(|(end, _)| end.elapsed() < RECENT + time);
    let paused: Duration = recent.map(|(_, took)| *took).sum();
    if !paused.is_zero() {
        println!("the host paused for {paused:?}");
    }
    time + paused
}

/// Looks at the clock from now on. In CI what fails is told at once too, and not only at the end of a long output.
pub fn watch() {
    static WATCH: Once = Once::new();
    WATCH.call_once(|| {
        thread::spawn(look);
        if std::env::var_os("CI").is_some() {
            let usual = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                // Unlike `eprintln!` this is not kept back.
                let _ = writeln!(io::stderr(), "{info}");
                usual(info);
            }));
        }
    });
}

fn look() {
    loop {
        let begin = Instant::now();
        thread::sleep(PERIOD);
        let late = begin.elapsed().saturating_sub(PERIOD);
        if late > NOTABLE {
            PAUSES.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), late));
        }
    }
}
