//! A pair of sockets between two processes that carries packets, and descriptors with them (`SCM_RIGHTS`, unix(7)).

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream as StdStream,
    },
};

use rustix::{
    io::{Errno, fcntl_dupfd_cloexec},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
        sockopt::{socket_domain, socket_peercred, socket_type},
    },
    process::getppid,
};
use tokio::{io::Interest, net::UnixStream};
use zeroize::Zeroizing;

/// Most bytes of a packet. Several of them fit into the socket's buffer, also where that is small.
pub const MAX_PACKET: usize = 32 * 1024;

/// Most descriptors of a packet: more are refused by the kernel (`SCM_MAX_FD`).
pub const MAX_DESCRIPTORS: usize = 253;

/// One end. Packets arrive whole, in order, and the end of the other process is seen.
#[derive(Debug)]
pub struct Packets(StdStream);

/// An end that waits without holding the runtime up.
#[derive(Debug)]
pub struct AsyncPackets(UnixStream);

/// What one packet brought.
#[derive(Debug)]
pub struct Packet {
    /// Wiped when it is dropped: there may be keys in it.
    pub bytes: Zeroizing<Vec<u8>>,
    pub descriptors: Vec<OwnedFd>,
}

impl Packets {
    /// Both ends. The second is for another process, whose standard input it has to become.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (own, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Self(own.into()), other))
    }

    /// The end that the parent has put at our standard input, which then reads as empty.
    pub fn at_standard_input() -> io::Result<Self> {
        let stdin = io::stdin();
        let is_end = socket_domain(&stdin).ok() == Some(AddressFamily::UNIX)
            && socket_type(&stdin).ok() == Some(SocketType::SEQPACKET);
        let is_parents = socket_peercred(&stdin).is_ok_and(|peer| Some(peer.pid) == getppid());
        if !is_end || !is_parents {
            return Err(io::Error::other("standard input is not a socket of the parent process"));
        }
        let own = fcntl_dupfd_cloexec(&stdin, 3)?;
        rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
        let own = StdStream::from(own);
        own.set_nonblocking(true)?;
        Ok(Self(own))
    }

    /// Sends a packet if the socket has room for it.
    pub fn send_now(&self, bytes: &[u8]) -> io::Result<()> {
        send(&self.0, bytes, &[])
    }

    /// The same end once more.
    pub fn duplicate(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// For the runtime of this thread.
    pub fn into_async(self) -> io::Result<AsyncPackets> {
        Ok(AsyncPackets(UnixStream::from_std(self.0)?))
    }
}

impl AsyncPackets {
    /// Sends at most [`MAX_PACKET`] bytes and [`MAX_DESCRIPTORS`] descriptors, whose own copies stay open here.
    pub async fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.0.async_io(Interest::WRITABLE, || send(&self.0, bytes, descriptors)).await
    }

    /// The next packet; `None` when the other process has closed its end.
    pub async fn receive(&self) -> io::Result<Option<Packet>> {
        let mut buffer = Zeroizing::new(vec![0; MAX_PACKET]);
        self.0.async_io(Interest::READABLE, || receive(&self.0, &mut buffer)).await
    }
}

fn send(socket: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let is_too_long = bytes.len() > MAX_PACKET || bytes.is_empty();
    if is_too_long || !(descriptors.is_empty() || control.push(SendAncillaryMessage::ScmRights(descriptors))) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sent = sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Option<Packet>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = match recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC) {
        Err(Errno::CONNRESET) => return Ok(None),
        received => received?,
    };
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        let message = "a packet is too long, or this process has no descriptors left";
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    // Nobody sends an empty packet: this is the end.
    let bytes = buffer.get(..received.bytes).filter(|bytes| !bytes.is_empty());
    Ok(bytes.map(|bytes| Packet { bytes: Zeroizing::new(bytes.to_vec()), descriptors }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (AsyncPackets, AsyncPackets) {
        let (own, other) = Packets::pair().unwrap();
        (own.into_async().unwrap(), Packets(other.into()).into_async().unwrap())
    }

    #[tokio::test]
    async fn o3_packets_have_a_limit_and_descriptors_are_closed_on_exec() {
        let (one, two) = pair();
        let file = std::fs::File::open("/dev/null").unwrap();
        let most = vec![file.as_fd(); MAX_DESCRIPTORS];
        one.send(&vec![7; MAX_PACKET], &most).await.unwrap();
        let packet = two.receive().await.unwrap().unwrap();
        assert_eq!((packet.bytes.len(), packet.descriptors.len()), (MAX_PACKET, MAX_DESCRIPTORS));
        for descriptor in &packet.descriptors {
            assert!(rustix::io::fcntl_getfd(descriptor).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        }
        assert!(one.send(&vec![7; MAX_PACKET + 1], &[]).await.is_err());
        assert!(one.send(&[], &[]).await.is_err());
        assert!(one.send(&[7], &vec![file.as_fd(); MAX_DESCRIPTORS + 1]).await.is_err());
        // Past our own limit, straight to the socket.
        rustix::net::send(&one.0, &vec![7; MAX_PACKET + 1], SendFlags::empty()).unwrap();
        assert!(two.receive().await.is_err());
        drop(one);
        assert!(two.receive().await.unwrap().is_none());
    }
}
