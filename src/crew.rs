//! How the workers are told things: each has an inbox, and whoever holds its [`Handle`] sends [`Command`]s, from any
//! thread. It is for what happens now and then; nothing of a connection's bytes goes this way.

use tokio::sync::mpsc;

use crate::{backend, connection::Admitted};

/// Something that a worker has to do on its own thread.
#[derive(Debug)]
pub enum Command {
    /// Accepts no more, ends its connections, then itself.
    Stop,
    /// Ends its connections to this backend.
    EndBackend(backend::Id),
    /// Serves a client that another worker accepted and admitted.
    Adopt(Admitted),
}

/// Sends commands to one worker.
#[derive(Debug, Clone)]
pub struct Handle(mpsc::UnboundedSender<Command>);

/// Where a worker finds its commands, in the order in which they were sent.
#[derive(Debug)]
pub struct Inbox(mpsc::UnboundedReceiver<Command>);

/// The two ends for one worker.
pub fn channel() -> (Handle, Inbox) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (Handle(sender), Inbox(receiver))
}

impl Handle {
    /// Never waits. A worker that has closed its inbox gives the command back.
    pub fn send(&self, command: Command) -> Result<(), Command> {
        self.0.send(command).map_err(|refused| refused.0)
    }
}

impl Inbox {
    /// The next command. `None` when nobody can send one any more, or the inbox is closed and empty.
    pub async fn next(&mut self) -> Option<Command> {
        self.0.recv().await
    }

    /// Takes nothing new; what was sent before is still to be had. So a command is either received or given back.
    pub fn close(&mut self) {
        self.0.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_received_or_given_back() {
        const SENDERS: usize = 4;
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for _ in 0..100 {
            let (handle, mut inbox) = channel();
            let (received, sent) = std::thread::scope(|scope| {
                let send = |handle: Handle| move || (0..100).take_while(|_| handle.send(Command::Stop).is_ok()).count();
                let senders: Vec<_> = (0..SENDERS).map(|_| scope.spawn(send(handle.clone()))).collect();
                let received = runtime.block_on(async {
                    let first = usize::from(inbox.next().await.is_some());
                    inbox.close();
                    let mut rest = 0;
                    while inbox.next().await.is_some() {
                        rest += 1;
                    }
                    first + rest
                });
                (received, senders.into_iter().map(|sender| sender.join().unwrap()).sum::<usize>())
            });
            assert_eq!(received, sent);
            assert!(handle.send(Command::Stop).is_err());
        }
    }
}
