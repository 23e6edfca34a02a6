//! One line that says how far the run is: rewritten on a terminal, one after the other elsewhere.

use std::{
    io::{IsTerminal, Write},
    time::{Duration, Instant},
};

#[derive(Debug)]
pub struct Progress {
    began: Instant,
    done: u32,
    total: u32,
    terminal: bool,
}

impl Progress {
    pub fn new(total: u32) -> Self {
        Self { began: Instant::now(), done: 0, total, terminal: std::io::stderr().is_terminal() }
    }

    /// Says what begins now.
    pub fn begin(&mut self, what: &str) {
        let left = if self.done == 0 {
            String::new()
        } else {
            let each = self.began.elapsed() / self.done;
            format!(", {} left", about(each * (self.total - self.done)))
        };
        self.done += 1;
        let line = format!("[{}/{}] {what}{left}", self.done, self.total);
        if self.terminal {
            eprint!("\r\x1b[K{line}");
            let _ = std::io::stderr().flush();
        } else {
            eprintln!("{line}");
        }
    }

    /// Makes room for a line of the result.
    pub fn clear(&self) {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
    }
}

fn about(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..100 => format!("{seconds} s"),
        seconds => format!("{} min", seconds.div_ceil(60)),
    }
}
