//! Whether this host can do what the fast paths need, tried once at the start instead of believed (traps R11).

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    time::Duration,
};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice};

use super::pipe;

/// Moves a few bytes from one TCP connection to another through a pipe, over loopback. Says how large the pipe is, in
/// bytes.
pub fn try_splice() -> io::Result<usize> {
    const MESSAGE: &[u8] = b"a byte that is spliced is not copied";
    let (mut left, source) = connected()?;
    let (sink, mut right) = connected()?;
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    let _ = fcntl_setpipe_size(&write, pipe::SIZE);
    let size = fcntl_getpipe_size(&write)?;
    left.write_all(MESSAGE)?;
    left.shutdown(std::net::Shutdown::Write)?;
    let mut moved = 0;
    while moved < MESSAGE.len() {
        let filled = splice(&source, None, &write, None, pipe::SIZE, SpliceFlags::MOVE)?;
        let emptied = splice(&read, None, &sink, None, filled, SpliceFlags::MOVE)?;
        if emptied == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        moved += emptied;
    }
    drop(sink);
    let mut received = Vec::new();
    right.read_to_end(&mut received)?;
    if received == MESSAGE { Ok(size) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Both ends of a connection whose calls do not wait for ever.
fn connected() -> io::Result<(TcpStream, TcpStream)> {
    const PATIENCE: Option<Duration> = Some(Duration::from_secs(1));
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let one = TcpStream::connect(listener.local_addr()?)?;
    let (other, _) = listener.accept()?;
    for stream in [&one, &other] {
        stream.set_read_timeout(PATIENCE)?;
        stream.set_write_timeout(PATIENCE)?;
    }
    Ok((one, other))
}

#[cfg(test)]
mod tests {
    #[test]
    fn r11_splice_works_where_the_tests_run() {
        assert!(super::try_splice().unwrap() >= 64 << 10);
    }
}
