//! The listening sockets of all workers, from bind(2) to listen(2): nobody is let in, not even by
//! the kernel, before all addresses are had.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;

use super::{Entrance, Hooks, StartError};
use crate::net::listen;

/// The sockets of one worker.
pub(super) type Sockets = Vec<(Arc<Entrance>, OwnedFd)>;

/// Every socket on which clients are accepted.
#[derive(Debug)]
pub struct Doors {
    /// By worker.
    pub(super) sockets: Vec<Sockets>,
}

impl Doors {
    /// Binds each entrance's address once for each of `workers`; where sockets for it are
    /// `inherited` from another instance, these are taken instead.
    ///
    /// # Errors
    /// The first address that could not be bound.
    pub fn bind(
        workers: usize,
        entrances: &[Arc<Entrance>],
        inherited: Vec<OwnedFd>,
        hooks: &Hooks,
    ) -> Result<Self, StartError> {
        let bind = || {
            if let Some(on_start) = &hooks.on_start {
                on_start()?;
            }
            let mut doors = Self {
                sockets: (0..workers).map(|_| Vec::new()).collect(),
            };
            let mut inherited = inherited;
            for entrance in entrances {
                doors
                    .add(entrance, &mut inherited)
                    .map_err(|error| refused(entrance, error))?;
            }
            Ok(doors)
        };
        // The namespace that a hook enters belongs to a thread.
        thread::scope(|scope| {
            let binding = thread::Builder::new().spawn_scoped(scope, bind)?;
            let panicked = |_| io::Error::other("binding failed");
            binding.join().map_err(panicked)?
        })
    }

    fn add(&mut self, entrance: &Arc<Entrance>, inherited: &mut Vec<OwnedFd>) -> io::Result<()> {
        let is_its = |fd: &mut OwnedFd| listen::local_address(fd).ok() == Some(entrance.address);
        let given: Vec<_> = inherited.extract_if(.., is_its).collect();
        let policy = &entrance.service.policy;
        let workers = self.sockets.len();
        if !given.is_empty() {
            // One that has none is handed clients by the others.
            for (n, socket) in given.into_iter().enumerate() {
                listen::prepare(&socket, policy)?;
                self.sockets[n % workers].push((entrance.clone(), socket));
            }
            let _set_once = entrance.bound.set(entrance.address);
            return Ok(());
        }
        listen::check_free(entrance.address)?;
        for sockets in &mut self.sockets {
            let address = entrance.bound.get().copied().unwrap_or(entrance.address);
            let socket = listen::bind(address, policy)?;
            let bound = listen::local_address(&socket)?;
            entrance.bound.get_or_init(|| bound);
            sockets.push((entrance.clone(), socket));
        }
        Ok(())
    }

    /// Has the kernel take clients.
    ///
    /// # Errors
    /// The first address that somebody else listens on meanwhile.
    pub fn listen(&self) -> Result<(), StartError> {
        for (entrance, socket) in self.sockets.iter().flatten() {
            listen::listen(socket, entrance.backlog).map_err(|error| refused(entrance, error))?;
        }
        Ok(())
    }
}

fn refused(entrance: &Entrance, error: io::Error) -> StartError {
    StartError::Listen {
        name: entrance.service.name.to_string(),
        address: entrance.address,
        error,
    }
}
