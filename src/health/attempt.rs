//! One check: a question with a limit on its time.

use std::time::Duration;

use tokio::{task::JoinSet, time::Instant};

use super::probe::{Failure, Progress};
use crate::metrics::CheckResult;

/// A verdict later than this was delayed by ourselves: it proves nothing about the backend (traps R18).
const STALL: Duration = Duration::from_secs(1);

/// How often a running check looks whether we are stalled.
const TICK: Duration = Duration::from_millis(250);

/// Asks, and gives up at the limit. The question has a task of its own: a panic in it is one failed check, and not the
/// end of all checks.
pub async fn verdict<Q>(question: Q, progress: &Progress, limit: Duration) -> Result<(), Failure>
where
    Q: Future<Output = Result<(), Failure>> + Send + 'static,
{
    let mut task = JoinSet::new();
    task.spawn(question);
    let end = Instant::now() + limit;
    let mut stalled = false;
    loop {
        let tick = end.min(Instant::now() + TICK);
        let in_time = tokio::time::timeout_at(tick, task.join_next()).await;
        stalled |= tick.elapsed() > STALL;
        let answer = if let Ok(answer) = in_time {
            answer
        } else {
            // An answer may have come together with the end of its time.
            tokio::task::yield_now().await;
            task.try_join_next()
        };
        match answer {
            Some(Ok(Ok(()))) => return Ok(()),
            Some(Ok(Err(failure))) => return Err(if stalled { late() } else { failure }),
            Some(Err(_)) => {
                let reason = "the check itself broke down: a panic, told apart, and a bug of sluicegate";
                return Err(Failure::new(CheckResult::Other, reason));
            }
            None if Instant::now() < end => {}
            None if stalled => return Err(late()),
            None => return Err(Failure::new(CheckResult::Timeout, progress.missing(limit))),
        }
    }
}

fn late() -> Failure {
    Failure::new(CheckResult::Stalled, "this process was stopped meanwhile")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn asked<Q>(question: impl FnOnce(Arc<Progress>) -> Q) -> Result<(), Failure>
    where
        Q: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let progress = Arc::new(Progress::default());
        let question = question(Arc::clone(&progress));
        runtime.block_on(verdict(question, &progress, Duration::from_millis(50)))
    }

    #[test]
    fn a_question_that_panics_is_a_failed_check_and_the_next_one_is_asked() {
        let broken = asked(|_| async { panic!("a bug") }).unwrap_err();
        assert_eq!(broken.result, CheckResult::Other);
        assert_eq!(asked(|_| async { Ok(()) }), Ok(()));
    }

    #[test]
    fn a_timeout_tells_what_was_said_until_then() {
        let silent = asked(|progress| async move {
            progress.reach("connected, but no answer");
            std::future::pending().await
        });
        assert_eq!(silent.unwrap_err().reason, "connected, but no answer within 50ms");
        let other = asked(|progress| async move {
            progress.hear(b"-NOAUTH ");
            progress.hear(&[b'x'; 100]);
            std::future::pending().await
        });
        let reason = other.unwrap_err().reason;
        assert!(
            reason.starts_with("\"-NOAUTH xxx") && reason.ends_with("xx...\" is all that came within 50ms"),
            "{reason}"
        );
    }
}
