//! Two instances on one host, one after the other. The new one finds the old one by the admin
//! address that both have, gets the listening sockets themselves, and tells it to drain: a client
//! whose handshake is under way, or who waits to be accepted, never sees a closed port.
//!
//! The talk, over [`handover`]: "takeover" or "succeed"; the sockets, "end"; "go"; "gone"; then
//! "free ADDRESS" for each listener of the old one that no session is left on. Its end, by a crash
//! too, is the end of the old instance.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::fs::Mode;

use super::{App, AppError};
use crate::config::{self, Admin, ControlAddress, ListenAddress};
use crate::lifecycle::Drainable;
use crate::net::{handover, listen};
use crate::server::{Listener, StartError};

/// Of the control socket's file.
const OWNER: Mode = Mode::RUSR.union(Mode::WUSR);

/// What may be on the way between two messages: the other one's start, or its drain.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often the old one looks whether a listener is free.
const POLL: Duration = Duration::from_millis(20);

/// Admin connections that wait to be accepted.
const ADMIN_BACKLOG: u32 = 128;

/// How an instance deals with one that runs already under the same admin address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Succession {
    /// Not at all.
    #[default]
    None,
    /// Takes the admin address of one that drains.
    Restart,
    /// Has it drain, and takes its clients from it.
    Takeover,
}

/// The instance before this one.
#[derive(Debug)]
pub(super) struct Predecessor {
    talk: OwnedFd,
    pub control: Option<OwnedFd>,
    pub admin: Option<OwnedFd>,
    /// Of `admin.control`.
    pub second: Option<OwnedFd>,
    pub listeners: Vec<(ListenAddress, OwnedFd)>,
}

impl Predecessor {
    /// Asks the instance that has this admin address for its sockets; `None` if there is none.
    pub fn find(admin: SocketAddr, succession: Succession) -> io::Result<Option<Self>> {
        let Some(talk) = handover::connect_to(&admin.to_string())? else {
            return Ok(None);
        };
        handover::set_patience(&talk, PATIENCE)?;
        let request = match succession {
            Succession::Takeover => "takeover",
            _ => "succeed",
        };
        handover::send(&talk, request, None)?;
        let mut found = Self {
            talk,
            control: None,
            admin: None,
            second: None,
            listeners: Vec::new(),
        };
        loop {
            let message = handover::receive(&found.talk)?;
            let (text, fd) = message.ok_or(io::ErrorKind::UnexpectedEof)?;
            match (&*text, fd) {
                ("control", Some(fd)) => found.control = Some(fd),
                ("admin", Some(fd)) => found.admin = Some(fd),
                ("admin.control", Some(fd)) => found.second = Some(fd),
                (text, Some(fd)) if let Some(address) = listener_address(text) => {
                    found.listeners.push((address, fd));
                }
                ("end", None) => return Ok(Some(found)),
                (why, _) => return Err(io::Error::other(why.to_owned())),
            }
        }
    }

    /// Has it drain; returns when it takes no more clients.
    pub fn relieve(&self) -> io::Result<()> {
        handover::send(&self.talk, "go", None)?;
        match handover::receive(&self.talk)? {
            // It may have had nothing left to do.
            None => Ok(()),
            Some((text, _)) if text == "gone" => Ok(()),
            Some((text, _)) => Err(io::Error::other(text)),
        }
    }

    /// Opens each of these listeners once the old instance has no session on it, on a thread of
    /// its own.
    pub fn make_way(self, waiting: Vec<Arc<Listener>>) -> io::Result<()> {
        let name = "takeover".to_owned();
        let wait = move || self.wait(waiting);
        thread::Builder::new().name(name).spawn(wait).map(drop)
    }

    #[expect(clippy::disallowed_methods, reason = "carries no session")]
    fn wait(&self, mut waiting: Vec<Arc<Listener>>) {
        while !waiting.is_empty() {
            match handover::receive(&self.talk) {
                Ok(Some((text, _))) => {
                    let address = text.strip_prefix("free ");
                    let address = address.and_then(|a| config::listen_address(a).ok());
                    let is_its =
                        |l: &mut Arc<Listener>| address.as_ref() == Some(&l.config.address);
                    waiting.extract_if(.., is_its).for_each(|l| open_late(&l));
                }
                // It drains on.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(None) | Err(_) => break,
            }
        }
        // It has ended, perhaps this very moment, and with it the pause that it would have kept.
        waiting.sort_by_key(|listener| listener.config.limits.reconnect_delay);
        let mut waited = Duration::ZERO;
        for listener in waiting {
            let delay = listener.config.limits.reconnect_delay;
            thread::sleep(delay.saturating_sub(waited));
            waited = delay;
            open_late(&listener);
        }
    }
}

/// What a socket of a listener is sent with.
fn listener_address(text: &str) -> Option<ListenAddress> {
    config::listen_address(text.strip_prefix("listener ")?).ok()
}

fn open_late(listener: &Listener) {
    let name = &*listener.params.name;
    tracing::info!(
        listener = name,
        "the instance before this one has left: accepting"
    );
    listener.open();
}

/// The sockets of the endpoint, which listen.
#[derive(Debug)]
pub(super) struct AdminSockets {
    pub main: OwnedFd,
    pub address: SocketAddr,
    /// Of `admin.control`.
    pub control: Option<OwnedFd>,
}

impl AdminSockets {
    /// The address of `admin.control` with the port that the system chose, if it did.
    pub fn control_address(&self, configured: ControlAddress) -> ControlAddress {
        let bound = |socket| listen::local_address(socket).ok();
        match (&configured, self.control.as_ref().and_then(bound)) {
            (ControlAddress::Tcp(_), Some(bound)) => ControlAddress::Tcp(bound),
            _ => configured,
        }
    }
}

/// With the instance that they were got from, if they were.
pub(super) fn admin_sockets(
    admin: Option<&Admin>,
    succession: Succession,
) -> Result<(Option<AdminSockets>, Option<Predecessor>), AppError> {
    let Some(admin) = admin else {
        return match succession {
            Succession::Takeover => Err(AppError::NoAdmin),
            _ => Ok((None, None)),
        };
    };
    let address = &admin.address;
    let find = || Predecessor::find(*address, succession);
    let mut before = None;
    if succession == Succession::Takeover {
        before = find().map_err(AppError::Takeover)?;
        if before.is_none() {
            tracing::info!(%address, "nothing to take over: no instance has this admin address");
        }
    }
    let bound = match before.as_mut().and_then(|before| before.admin.take()) {
        Some(socket) => Ok(socket),
        None => listen::bind_alone(*address).or_else(|error| {
            if succession == Succession::Restart && error.kind() == io::ErrorKind::AddrInUse {
                // One that does not drain keeps it: the first error is the one to tell.
                before = find().unwrap_or_default();
            }
            before.as_mut().and_then(|b| b.admin.take()).ok_or(error)
        }),
    };
    let main = bound.map_err(|error| AppError::admin(*address, error))?;
    let listening = listen::listen(&main, ADMIN_BACKLOG);
    listening.map_err(|error| AppError::admin(*address, error))?;
    let address = listen::local_address(&main)?;
    let control = admin.control.as_ref();
    let control = control.map(|control| control_socket(control, before.as_mut()));
    let control = control.transpose()?;
    let sockets = AdminSockets {
        main,
        address,
        control,
    };
    Ok((Some(sockets), before))
}

/// The socket of `admin.control`, which listens: the other instance's where it has the same address.
fn control_socket(
    address: &ControlAddress,
    before: Option<&mut Predecessor>,
) -> Result<OwnedFd, AppError> {
    let is_its = |socket: &OwnedFd| match address {
        ControlAddress::Tcp(address) => listen::local_address(socket).ok() == Some(*address),
        ControlAddress::Unix(path) => listen::local_file(socket).ok().as_ref() == Some(path),
    };
    let given = before.and_then(|before| before.second.take());
    let socket = match (given.filter(is_its), address) {
        (Some(socket), _) => Ok(socket),
        (None, ControlAddress::Tcp(address)) => listen::bind_alone(*address),
        (None, ControlAddress::Unix(path)) => listen::bind_file(path, OWNER),
    };
    let listening = socket.and_then(|socket| {
        listen::listen(&socket, ADMIN_BACKLOG)?;
        Ok(socket)
    });
    let address = address.clone();
    listening.map_err(|error| AppError::Control { address, error })
}

/// What to say of a listener that could not be bound.
pub(super) fn explain(
    error: StartError,
    admin: Option<&AdminSockets>,
    before: Option<&Predecessor>,
    succession: Succession,
) -> AppError {
    match (admin, before) {
        (Some(admin), None) if succession == Succession::Takeover => AppError::NotOurs {
            error,
            address: admin.address,
        },
        _ => error.into(),
    }
}

pub(super) fn estate(
    admin: &AdminSockets,
    before: Option<&mut Predecessor>,
) -> io::Result<Option<Estate>> {
    let control = match before.and_then(|before| before.control.take()) {
        Some(control) => Ok(control),
        None => handover::listen_as(&admin.address.to_string()),
    };
    match control {
        Ok(control) => Ok(Some(Estate {
            control,
            admin: admin.main.try_clone()?,
            second: admin.control.as_ref().map(OwnedFd::try_clone).transpose()?,
        })),
        Err(error) => {
            tracing::warn!("no other instance can take over from this one: {error}");
            Ok(None)
        }
    }
}

/// Has clients accepted: at once, but where the instance before may still have a session that
/// counts against a limit.
pub(super) fn open(
    listeners: &[Arc<Listener>],
    before: Option<Predecessor>,
) -> Result<(), AppError> {
    let mut waiting = Vec::new();
    for listener in listeners {
        // The other one may have had the kernel refuse clients until a moment ago.
        listener.stay_open()?;
        if before.is_some() && listener.config.limits.max_connections.is_some() {
            waiting.push(listener.clone());
        } else {
            listener.open();
        }
    }
    Ok(before.map_or(Ok(()), |before| before.make_way(waiting))?)
}

/// The sockets that a successor gets, beside those of the listeners.
#[derive(Debug)]
pub(super) struct Estate {
    pub control: OwnedFd,
    pub admin: OwnedFd,
    pub second: Option<OwnedFd>,
}

impl App {
    pub(super) fn listen_for_successors(self: &Arc<Self>) -> io::Result<()> {
        let estate = self.estate.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(estate) = estate.as_ref() else {
            return Ok(());
        };
        let socket = UnixListener::from(estate.control.try_clone()?);
        socket.set_nonblocking(true)?;
        let socket = tokio::net::UnixListener::from_std(socket)?;
        let app = self.clone();
        tokio::spawn(async move {
            let over = app.over();
            tokio::pin!(over);
            loop {
                let accepted = tokio::select! {
                    biased;
                    () = &mut over => return,
                    accepted = socket.accept() => accepted,
                };
                match accepted {
                    Ok((talk, _)) => app.clone().talk_to_successor(talk),
                    Err(error) => {
                        tracing::debug!(%error, "takeover: accept failed");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                }
            }
        });
        Ok(())
    }

    fn talk_to_successor(self: Arc<Self>, talk: tokio::net::UnixStream) {
        let talk = move || {
            let talk = talk.into_std()?;
            talk.set_nonblocking(false)?;
            if handover::is_trusted(&talk)? {
                self.be_succeeded(&talk.into())?;
            }
            io::Result::Ok(())
        };
        let say = |error| tracing::warn!("another instance did not take over: {error}");
        let thread = thread::Builder::new().name("takeover".to_owned());
        if let Err(error) = thread.spawn(move || talk().unwrap_or_else(say)) {
            say(error);
        }
    }

    /// Talks to one that asks to succeed this instance, as long as one of the two lives.
    fn be_succeeded(&self, talk: &OwnedFd) -> io::Result<()> {
        handover::set_patience(talk, PATIENCE)?;
        let Some((request, _)) = handover::receive(talk)? else {
            return Ok(());
        };
        // A reload waits: the other one knows of these listeners.
        let unchanged = self.registry.change();
        let listeners = self.registry.listeners();
        let drained = listeners.iter().all(|l| *l.is_stopped().borrow());
        // Held to the end of the talk: one at a time.
        let Ok(mut estate) = self.estate.try_lock() else {
            return handover::send(talk, "another instance is taking over", None);
        };
        let Some(given) = &*estate else {
            return handover::send(talk, "it hands over to another instance already", None);
        };
        if request != "takeover" && !drained {
            return handover::send(talk, "it does not drain", None);
        }
        handover::send(talk, "control", Some(given.control.as_fd()))?;
        handover::send(talk, "admin", Some(given.admin.as_fd()))?;
        if let Some(second) = &given.second {
            handover::send(talk, "admin.control", Some(second.as_fd()))?;
        }
        for listener in &listeners {
            for (address, socket) in listener.duplicates()? {
                handover::send(talk, &format!("listener {address}"), Some(socket.as_fd()))?;
            }
        }
        handover::send(talk, "end", None)?;
        match handover::receive(talk)? {
            Some((text, _)) if text == "go" => {}
            // It could not start.
            _ => return Ok(()),
        }
        *estate = None;
        drop(estate);
        tracing::info!("another instance takes over");
        self.succeeded.send_replace(true);
        self.stop_accepting();
        drop(unchanged);
        handover::send(talk, "gone", None)?;
        Self::tell_who_left(talk, listeners)
    }

    fn tell_who_left(talk: &OwnedFd, mut held: Vec<Arc<Listener>>) -> io::Result<()> {
        handover::set_patience(talk, POLL)?;
        loop {
            let left: Vec<_> = held
                .extract_if(.., |l| l.is_left() && l.limiter.in_use() == 0)
                .collect();
            for address in left.iter().map(|listener| &listener.config.address) {
                // After a reload several may have had it.
                if held.iter().all(|other| other.config.address != *address) {
                    handover::send(talk, &format!("free {address}"), None)?;
                }
            }
            match handover::receive(talk) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                ended => return ended.map(drop),
            }
        }
    }
}
