//! Load that counts: short HTTP/1.1 connections at a steady rate, each of which has to get the whole right answer.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::web::BODY;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: foobar.com\r\nConnection: close\r\n\r\n";

/// One connection.
#[derive(Debug, Clone)]
pub struct Visit {
    /// When its connect began.
    pub begun: Instant,
    pub took: Duration,
    /// `None`: the whole answer, to the byte.
    pub fault: Option<String>,
}

/// Running load.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    visits: Arc<Mutex<Vec<Visit>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// `rate` connections a second in all, from `threads` threads that keep their own pace.
    pub fn start(address: SocketAddr, rate: u32, threads: u32) -> Self {
        let (stop, visits) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let begin = Instant::now();
        let threads = (0..threads).map(|number| {
            let (stop, visits) = (Arc::clone(&stop), Arc::clone(&visits));
            let period = Duration::from_secs(1) * threads / rate;
            thread::spawn(move || {
                let mut next = begin + period * number / threads;
                while !stop.load(Ordering::Relaxed) {
                    thread::sleep(next.saturating_duration_since(Instant::now()));
                    next = (next + period).max(Instant::now().checked_sub(period).unwrap_or(next));
                    let visit = visit(address);
                    visits.lock().unwrap().push(visit);
                }
            })
        });
        let threads = threads.collect();
        Self { stop, visits, threads }
    }

    /// Connections that have ended.
    pub fn count(&self) -> usize {
        self.visits.lock().unwrap().len()
    }

    /// The connections that have ended so far.
    pub fn visits(&self) -> Vec<Visit> {
        self.visits.lock().unwrap().clone()
    }

    /// Ends it and gives every connection, in the order of their ends.
    pub fn finish(mut self) -> Vec<Visit> {
        self.end();
        std::mem::take(&mut self.visits.lock().unwrap())
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

/// One connection, one request.
pub fn visit(address: SocketAddr) -> Visit {
    let begun = Instant::now();
    let fault = exchange(address).err();
    Visit { begun, took: begun.elapsed(), fault }
}

/// What did not go as it should, of all visits.
pub fn faults(visits: &[Visit]) -> Vec<&Visit> {
    visits.iter().filter(|visit| visit.fault.is_some()).collect()
}

pub fn slowest<'v>(visits: impl IntoIterator<Item = &'v Visit>) -> Duration {
    visits.into_iter().map(|visit| visit.took).max().unwrap_or_default()
}

fn exchange(address: SocketAddr) -> Result<(), String> {
    let mut stream = TcpStream::connect(address).map_err(|error| format!("connect: {error}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).map_err(|error| error.to_string())?;
    stream.write_all(REQUEST).map_err(|error| format!("send: {error}"))?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map_err(|error| format!("receive after {} bytes: {error}", answer.len()))?;
    let text = String::from_utf8_lossy(&answer);
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body);
    if text.starts_with("HTTP/1.1 200 ") && body == Some(BODY) {
        Ok(())
    } else {
        Err(format!("wrong answer: {text:?}"))
    }
}
