//! Some bytes to a backend, and what it must answer.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{Failure, excerpt};
use crate::{config::Expect, metrics::CheckResult};

/// No more of an answer is searched.
const MOST_ANSWER: usize = 64 << 10;

#[derive(Debug)]
pub struct SendExpect {
    pub send: Vec<u8>,
    pub expect: Expect,
}

impl SendExpect {
    pub async fn ask(&self, mut stream: TcpStream) -> Result<(), Failure> {
        stream.write_all(&self.send).await.map_err(|error| Failure::io("send", &error))?;
        let mut answer = Vec::new();
        loop {
            let count = stream.read_buf(&mut answer).await.map_err(|error| Failure::io("receive", &error))?;
            if self.is_met(&answer) {
                return Ok(());
            }
            if count == 0 && answer.is_empty() {
                return Err(Failure::new(CheckResult::Closed, "connection closed without an answer"));
            }
            if count == 0 || answer.len() > MOST_ANSWER {
                let reason = format!("the answer {} is not what is expected", excerpt(&answer));
                return Err(Failure::new(CheckResult::Answer, reason));
            }
        }
    }

    fn is_met(&self, answer: &[u8]) -> bool {
        match &self.expect {
            Expect::Bytes(wanted) => answer.windows(wanted.len().max(1)).any(|window| window == wanted),
            Expect::Regex(pattern) => pattern.0.is_match(answer),
        }
    }
}
