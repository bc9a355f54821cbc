//! Where this instance says how it can be asked.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use super::takeover::AdminSockets;
use crate::admin::Notice;
use crate::config::Admin;
use crate::tls::AdminAcceptor;

/// What is said to the subcommands, as long as the process lives.
#[derive(Debug)]
pub(super) struct Board {
    /// With the addresses that were bound; `None`: the endpoint is off.
    admin: Option<Admin>,
    tls: Option<Arc<AdminAcceptor>>,
    posted: Mutex<Option<File>>,
}

impl Board {
    /// Says so in the log, and to the subcommands.
    pub fn announce(
        config: Option<&Admin>,
        sockets: Option<&AdminSockets>,
        tls: Option<Arc<AdminAcceptor>>,
    ) -> Self {
        let scheme = tls.as_ref().map_or("http", |_| "https");
        match sockets {
            Some(AdminSockets { address, .. }) => {
                tracing::info!(%address, scheme, "the admin endpoint listens");
            }
            None => tracing::info!("the admin endpoint is off"),
        }
        if let Some(address) = config.and_then(|admin| admin.control.as_ref()) {
            tracing::info!(%address, "the control address of the admin endpoint listens");
        }
        let bound = config.zip(sockets).map(|(admin, sockets)| Admin {
            address: sockets.address,
            control: admin
                .control
                .clone()
                .map(|address| sockets.control_address(address)),
            ..admin.clone()
        });
        let board = Self {
            admin: bound,
            tls,
            posted: Mutex::default(),
        };
        board.post();
        board
    }

    /// Where the admin endpoint listens; `None`: it is off.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(|admin| admin.address)
    }

    /// What clients of the admin address meet, where that is TLS.
    pub fn tls(&self) -> Option<&Arc<AdminAcceptor>> {
        self.tls.as_ref()
    }

    /// Says it anew: the certificate may be another one. Who reads meanwhile finds either notice whole.
    pub fn post(&self) {
        let chains = self.tls.as_ref().map(|tls| tls.chains());
        let chain = chains.and_then(|all| all.into_iter().next());
        let certificate = chain.map(|chain| chain.first.der);
        let notice = self.admin.clone();
        let notice = notice.map(|admin| Notice::new(admin, certificate));
        let posted = notice.unwrap_or_default().post();
        let say = |error: &io::Error| {
            tracing::warn!("subcommands find this process by --admin only: {error}");
        };
        let mut before = self.posted.lock().unwrap_or_else(PoisonError::into_inner);
        *before = posted.inspect_err(say).ok();
    }
}
