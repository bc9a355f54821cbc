//! The listeners by name. Each can be added, replaced and stopped while the others serve.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{io, thread};

use super::accept::{self, Acceptor};
use super::workers::Workers;
use super::{Hooks, Listener, StartError, checks, listener};
use crate::config::{ListenAddress, ListenerConfig};
use crate::metrics::Metrics;
use crate::session::SessionParams;

/// The listeners, and the workers that serve them.
#[derive(Debug)]
pub struct Registry {
    /// The data-plane threads.
    pub workers: Workers,
    hooks: Hooks,
    metrics: Arc<Metrics>,
    /// Held by whoever changes the listeners.
    changing: Mutex<()>,
    /// No more clients are taken, whatever listeners come.
    closed: AtomicBool,
    /// Those that serve, and those that were removed and have a session yet.
    listeners: Mutex<Vec<Arc<Listener>>>,
}

impl Registry {
    /// Without any listener.
    #[must_use]
    pub fn new(workers: Workers, hooks: Hooks, metrics: Arc<Metrics>) -> Self {
        Self {
            workers,
            hooks,
            metrics,
            changing: Mutex::default(),
            closed: AtomicBool::new(false),
            listeners: Mutex::default(),
        }
    }

    /// Adds listeners: binds all addresses, then has the kernel take clients on all of them, then
    /// accepts as soon as each is open. Sockets that are `inherited` are used where the address
    /// is theirs.
    ///
    /// # Errors
    /// The first address that could not be had; then none of the listeners is added.
    pub fn add(
        &self,
        wanted: Vec<(ListenerConfig, Arc<SessionParams>)>,
        mut inherited: Vec<(ListenAddress, OwnedFd)>,
    ) -> Result<Vec<Arc<Listener>>, StartError> {
        let workers = self.workers.pool().balancer.workers();
        // The last one of a name is the one that its successor is to be like.
        let before: Vec<_> = self.lock().iter().rev().cloned().collect();
        let bind = || {
            if let Some(on_start) = &self.hooks.on_start {
                on_start()?;
            }
            let bind = |(config, params): (ListenerConfig, _)| {
                let before = before.iter().find(|old| old.config.name == config.name);
                let before = before.map(|before| &**before);
                Listener::bind(config, params, before, workers.len(), &mut inherited)
            };
            wanted.into_iter().map(bind).collect::<Result<Vec<_>, _>>()
        };
        // The namespace that a hook enters belongs to a thread.
        let added = thread::scope(|scope| {
            let binding = thread::Builder::new().spawn_scoped(scope, bind)?;
            let panicked = |_| io::Error::other("binding failed");
            binding.join().map_err(panicked)?
        })?;
        added.iter().try_for_each(|listener| listener.listen())?;
        for listener in &added {
            listener.limiter.resize(listener::places(&listener.config));
            // A worker without a socket is handed clients by the others.
            let sockets = listener.sockets().clone();
            for (worker, socket) in workers.iter().cycle().zip(sockets) {
                let pool = self.workers.pool().clone();
                let acceptor = Acceptor::new(pool, worker.clone(), listener.clone(), socket);
                accept::start(acceptor);
            }
            checks::start(self.workers.pool(), listener);
        }
        let mut listeners = self.lock();
        listeners.extend(added.iter().cloned());
        if self.closed.load(Ordering::Relaxed) {
            added.iter().for_each(|listener| listener.stop());
        }
        drop(listeners);
        Ok(added)
    }

    /// Takes no more clients, for good.
    pub fn close(&self) {
        let listeners = self.lock();
        self.closed.store(true, Ordering::Relaxed);
        listeners.iter().for_each(|listener| listener.stop());
    }

    /// Has others wait who want to change the listeners.
    pub fn change(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that serve, and those that were removed and have a session yet. The others are
    /// forgotten, with the series of their name.
    #[must_use]
    pub fn listeners(&self) -> Vec<Arc<Listener>> {
        let mut listeners = self.lock();
        // Whoever changes them may be about to use the series.
        if let Ok(_nobody_else) = self.changing.try_lock() {
            let is_over = |l: &mut Arc<Listener>| *l.is_stopped().borrow() && l.is_left();
            for over in listeners.extract_if(.., is_over).collect::<Vec<_>>() {
                let name = &over.config.name;
                if listeners.iter().all(|other| other.config.name != *name) {
                    self.metrics.remove_listener(name);
                }
            }
        }
        listeners.clone()
    }

    /// Those that serve.
    #[must_use]
    pub fn serving(&self) -> Vec<Arc<Listener>> {
        let listeners = self.lock();
        let serving = listeners.iter().filter(|l| !*l.is_stopped().borrow());
        serving.cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Listener>>> {
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
