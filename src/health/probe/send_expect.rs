//! Some bytes to a backend, and what it must answer.

use std::time::Duration;

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::{Failure, Progress, excerpt};
use crate::{config::Expect, metrics::CheckResult};

/// No more of an answer is searched.
const MOST_ANSWER: u64 = 64 << 10;

/// An answer that makes a pause may be complete.
const PAUSE: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub struct SendExpect {
    pub send: Vec<u8>,
    pub expect: Expect,
}

/// An answer that grows. A backend decides in how many pieces it comes, so a piece must not cost a look at all of it: the
/// control thread has other things to do.
#[derive(Debug)]
struct Answer<'e> {
    expect: &'e Expect,
    bytes: Vec<u8>,
    /// So many bytes were searched.
    searched: usize,
}

impl SendExpect {
    pub async fn ask(&self, mut stream: TcpStream, progress: &Progress) -> Result<(), Failure> {
        stream.write_all(&self.send).await.map_err(|error| Failure::io("send", &error))?;
        self.listen(stream, progress).await
    }

    async fn listen(&self, stream: impl AsyncRead + Unpin, progress: &Progress) -> Result<(), Failure> {
        let mut stream = stream.take(MOST_ANSWER);
        let mut answer = Answer { expect: &self.expect, bytes: Vec::new(), searched: 0 };
        loop {
            let before = answer.bytes.len();
            let count = if answer.is_searched() {
                stream.read_buf(&mut answer.bytes).await
            } else if let Ok(count) = timeout(PAUSE, stream.read_buf(&mut answer.bytes)).await {
                count
            } else if answer.search() {
                return Ok(());
            } else {
                continue;
            };
            let count = count.map_err(|error| Failure::io("receive", &error))?;
            progress.hear(answer.bytes.get(before..).unwrap_or_default());
            if (count == 0 || answer.is_due()) && answer.search() {
                return Ok(());
            }
            if count == 0 && answer.bytes.is_empty() {
                return Err(Failure::new(CheckResult::Closed, "connection closed without an answer"));
            }
            if count == 0 {
                let reason = format!("the answer {} is not what is expected", excerpt(&answer.bytes));
                return Err(Failure::new(CheckResult::Answer, reason));
            }
        }
    }
}

impl Answer<'_> {
    fn is_searched(&self) -> bool {
        self.searched == self.bytes.len()
    }

    /// Bytes are looked for in what is new; an expression begins anew each time, so only when there is twice as much.
    fn is_due(&self) -> bool {
        match self.expect {
            Expect::Bytes(_) => true,
            Expect::Regex(_) => self.bytes.len() >= self.searched.saturating_mul(2),
        }
    }

    fn search(&mut self) -> bool {
        let searched = std::mem::replace(&mut self.searched, self.bytes.len());
        match self.expect {
            Expect::Bytes(wanted) => {
                let begin = (searched + 1).saturating_sub(wanted.len());
                let new = self.bytes.get(begin..).unwrap_or_default();
                new.windows(wanted.len().max(1)).any(|window| window == wanted)
            }
            Expect::Regex(pattern) => pattern.0.is_match(&self.bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};

    use super::*;
    use crate::config::Pattern;

    fn regex(text: &str) -> Expect {
        Expect::Regex(Pattern(regex::bytes::Regex::new(text).unwrap()))
    }

    /// The verdict on an answer that comes in pieces of this size, from a peer that then closes or says nothing more.
    fn verdict(expect: Expect, answer: &[u8], piece: usize, closes: bool) -> Option<Result<(), Failure>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (near, mut far): (DuplexStream, _) = duplex(piece);
            let exchange = SendExpect { send: Vec::new(), expect };
            let progress = Progress::default();
            let answering = async {
                for piece in answer.chunks(piece) {
                    if far.write_all(piece).await.is_err() {
                        return;
                    }
                }
                if !closes {
                    std::future::pending::<()>().await;
                }
                drop(far);
                std::future::pending::<()>().await;
            };
            tokio::select! {
                verdict = timeout(Duration::from_millis(500), exchange.listen(near, &progress)) => verdict.ok(),
                () = answering => None,
            }
        })
    }

    #[test]
    fn an_answer_is_found_in_whatever_pieces_it_comes() {
        for piece in [1, 2, 3, 7, 100] {
            for closes in [true, false] {
                for expect in [Expect::Bytes(b"ready".to_vec()), regex("^220 .*ready\r\n$")] {
                    let verdict = verdict(expect, b"220 mail.foobar.com is ready\r\n", piece, closes);
                    assert_eq!(verdict, Some(Ok(())), "pieces of {piece}");
                }
            }
        }
        assert_eq!(verdict(Expect::Bytes(b"ready".to_vec()), b"220 no", 2, false), None);
        assert!(verdict(regex("ready"), b"220 no", 2, true).is_some_and(|verdict| verdict.is_err()));
    }

    #[test]
    fn an_answer_in_many_small_pieces_is_not_searched_as_a_whole_each_time() {
        let pattern = regex("ready");
        let mut answer = Answer { expect: &pattern, bytes: Vec::new(), searched: 0 };
        let mut searches = 0;
        for _ in 0..MOST_ANSWER {
            answer.bytes.push(b'x');
            if answer.is_due() {
                searches += 1;
                assert!(!answer.search());
            }
        }
        assert!(searches <= 17, "{searches} searches");
    }

    #[test]
    fn an_answer_without_end_is_given_up() {
        let endless = vec![b'x'; 1 << 20];
        let told = verdict(Expect::Bytes(b"ready".to_vec()), &endless, 8 << 10, false).unwrap().unwrap_err();
        assert_eq!(told.result, CheckResult::Answer);
    }
}
