//! Messages between two instances on one host, each of which may carry a descriptor: a local
//! socket without a file, whose name says whose it is.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::retry_on_intr;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, connect,
    listen, recvmsg, sendmsg, socket_with,
};
use rustix::process::geteuid;

const LONGEST_MESSAGE: usize = 256;
const WAITING: i32 = 4;

/// Listens under a name of this user in this network namespace.
///
/// # Errors
/// EADDRINUSE where somebody else does, and what else socket(2), bind(2) and listen(2) say.
pub fn listen_as(name: &str) -> io::Result<OwnedFd> {
    let socket = socket()?;
    bind(&socket, &address(name)?)?;
    listen(&socket, WAITING)?;
    Ok(socket)
}

/// Connects to the instance of this user that listens under a name; `None` if there is none.
///
/// # Errors
/// Another user's process has the name, or what socket(2) and connect(2) say.
pub fn connect_to(name: &str) -> io::Result<Option<OwnedFd>> {
    let socket = socket()?;
    match connect(&socket, &address(name)?) {
        Ok(()) if is_trusted(&socket)? => Ok(Some(socket)),
        Ok(()) => Err(io::ErrorKind::PermissionDenied.into()),
        Err(rustix::io::Errno::CONNREFUSED) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether the process at the other end is this user's, or root's.
///
/// # Errors
/// What getsockopt(2) says.
pub fn is_trusted(socket: impl AsFd) -> io::Result<bool> {
    let uid = sockopt::socket_peercred(socket)?.uid;
    Ok(uid.is_root() || uid == geteuid())
}

/// How long [`receive`] waits at most, then it fails with `WouldBlock`.
///
/// # Errors
/// What setsockopt(2) says.
pub fn set_patience(socket: impl AsFd, patience: Duration) -> io::Result<()> {
    let socket = socket.as_fd();
    sockopt::set_socket_timeout(socket, Timeout::Send, Some(patience))?;
    Ok(sockopt::set_socket_timeout(
        socket,
        Timeout::Recv,
        Some(patience),
    )?)
}

/// Sends one message.
///
/// # Errors
/// What sendmsg(2) says.
pub fn send(socket: impl AsFd, text: &str, with: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = with.map(|fd| [fd]);
    if let Some(fds) = &fds {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    let text = [IoSlice::new(text.as_bytes())];
    retry_on_intr(|| sendmsg(&socket, &text, &mut control, SendFlags::NOSIGNAL))?;
    Ok(())
}

/// Waits for one message; `None` when the other end has closed.
///
/// # Errors
/// What recvmsg(2) says.
pub fn receive(socket: impl AsFd) -> io::Result<Option<(String, Option<OwnedFd>)>> {
    let mut text = [0; LONGEST_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = retry_on_intr(|| {
        let mut text = [IoSliceMut::new(&mut text)];
        recvmsg(&socket, &mut text, &mut control, RecvFlags::CMSG_CLOEXEC)
    });
    let length = match received {
        Ok(message) => message.bytes,
        Err(rustix::io::Errno::CONNRESET) => 0,
        Err(error) => return Err(error.into()),
    };
    let mut fds = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
        _ => Vec::new(),
    });
    let fd = fds.next();
    let text = String::from_utf8_lossy(&text[..length]).into_owned();
    Ok((length > 0).then_some((text, fd)))
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let kind = SocketType::SEQPACKET;
    Ok(socket_with(AddressFamily::UNIX, kind, flags, None)?)
}

fn address(name: &str) -> io::Result<SocketAddrUnix> {
    let name = format!("pulsegate {} {name}", geteuid().as_raw());
    Ok(SocketAddrUnix::new_abstract_name(name.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use rustix::net::accept;

    use super::*;
    use crate::net::listen;

    #[test]
    fn a_listening_socket_is_handed_over() {
        let name = format!("test {}", std::process::id());
        assert!(connect_to(&name).expect("no error").is_none());
        let listener = listen_as(&name).expect("listens");
        assert!(listen_as(&name).is_err(), "taken");
        let there = connect_to(&name).expect("no error").expect("somebody");
        let here = accept(&listener).expect("accepted");
        let given = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        send(&here, "a", Some(given.as_fd())).expect("sent");
        send(&here, "b", None).expect("sent");
        drop(here);
        let (text, fd) = receive(&there).expect("received").expect("a message");
        let bound = listen::local_address(fd.expect("a descriptor")).expect("a socket");
        assert_eq!((&*text, bound), ("a", given.local_addr().expect("bound")));
        let second = receive(&there).expect("received").expect("a message");
        assert!(second.0 == "b" && second.1.is_none());
        assert!(receive(&there).expect("the end").is_none());
    }
}
