//! The listening sockets of all workers, from bind(2) to listen(2): nobody is let in, not even by
//! the kernel, before all addresses are had.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;

use super::{Hooks, Listener, StartError};
use crate::net::listen;

/// The sockets of one worker.
pub(super) type Sockets = Vec<(Arc<Listener>, OwnedFd)>;

/// Every socket on which clients are accepted.
#[derive(Debug)]
pub struct BoundSockets {
    /// By worker.
    pub(super) sockets: Vec<Sockets>,
}

impl BoundSockets {
    /// Binds each listener's address once for each of `workers`; where sockets for it are
    /// `inherited` from another instance, these are taken instead.
    ///
    /// # Errors
    /// The first address that could not be bound.
    pub fn bind(
        workers: usize,
        listeners: &[Arc<Listener>],
        inherited: Vec<OwnedFd>,
        hooks: &Hooks,
    ) -> Result<Self, StartError> {
        let bind = || {
            if let Some(on_start) = &hooks.on_start {
                on_start()?;
            }
            let mut bound = Self {
                sockets: (0..workers).map(|_| Vec::new()).collect(),
            };
            let mut inherited = inherited;
            for listener in listeners {
                bound
                    .add(listener, &mut inherited)
                    .map_err(|error| refused(listener, error))?;
            }
            Ok(bound)
        };
        // The namespace that a hook enters belongs to a thread.
        thread::scope(|scope| {
            let binding = thread::Builder::new().spawn_scoped(scope, bind)?;
            let panicked = |_| io::Error::other("binding failed");
            binding.join().map_err(panicked)?
        })
    }

    fn add(&mut self, listener: &Arc<Listener>, inherited: &mut Vec<OwnedFd>) -> io::Result<()> {
        let is_its = |fd: &mut OwnedFd| listen::local_address(fd).ok() == Some(listener.address);
        let given: Vec<_> = inherited.extract_if(.., is_its).collect();
        let policy = &listener.params.policy;
        let workers = self.sockets.len();
        if !given.is_empty() {
            // One that has none is handed clients by the others.
            for (n, socket) in given.into_iter().enumerate() {
                listen::prepare(&socket, policy)?;
                self.sockets[n % workers].push((listener.clone(), socket));
            }
            let _set_once = listener.bound.set(listener.address);
            return Ok(());
        }
        listen::check_free(listener.address)?;
        for sockets in &mut self.sockets {
            let address = listener.bound.get().copied().unwrap_or(listener.address);
            let socket = listen::bind(address, policy)?;
            let bound = listen::local_address(&socket)?;
            listener.bound.get_or_init(|| bound);
            sockets.push((listener.clone(), socket));
        }
        Ok(())
    }

    /// Has the kernel take clients.
    ///
    /// # Errors
    /// The first address that somebody else listens on meanwhile.
    pub fn listen(&self) -> Result<(), StartError> {
        for (listener, socket) in self.sockets.iter().flatten() {
            listen::listen(socket, listener.backlog).map_err(|error| refused(listener, error))?;
        }
        Ok(())
    }
}

fn refused(listener: &Listener, error: io::Error) -> StartError {
    StartError::Listen {
        name: listener.params.name.to_string(),
        address: listener.address,
        error,
    }
}
