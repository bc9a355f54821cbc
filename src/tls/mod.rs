//! TLS over a leg: the handshake, and the layer that turns payload into records and back.
//!
//! Sessions use the unbuffered interface of rustls, so that an idle one holds no buffer. Whoever serves
//! or asks a few connections (the admin address, checks, `probe`) uses tokio-rustls with [`provider`].

pub mod certificate;
mod client;
mod connection;
mod failure;
mod files;
mod handshake;
mod judge;
mod layer;
mod material;
mod server;
pub mod stream;

use std::sync::Arc;

use rustls::SupportedProtocolVersion;
use rustls::crypto::CryptoProvider;
use rustls::server::ProducesTickets;
use rustls::version::{TLS12, TLS13};

pub use self::certificate::Certificate;
pub use self::client::{Connector, judge_of, judged_by};
pub use self::failure::HandshakeError;
pub use self::files::{Chain, Concern, LoadError, first_certificate};
pub use self::handshake::{Established, Handshake, Side, note_server_name};
pub use self::judge::{Judge, Shown};
pub use self::material::{Material, Renewal, Section};
pub use self::server::{Acceptor, AdminAcceptor};
use crate::config::MinVersion;
pub use crate::metrics::{HandshakeFailure, TlsVersion};

/// The cryptography of every configuration of rustls here.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    #[cfg(feature = "aws-lc")]
    return Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    #[cfg(all(feature = "ring", not(feature = "aws-lc")))]
    return Arc::new(rustls::crypto::ring::default_provider());
    #[cfg(not(any(feature = "ring", feature = "aws-lc")))]
    compile_error!("TLS needs one of the features `ring` and `aws-lc`");
}

/// A key for tickets, which changes by itself every six hours.
fn ticketer() -> Result<Arc<dyn ProducesTickets>, rustls::Error> {
    #[cfg(feature = "aws-lc")]
    return rustls::crypto::aws_lc_rs::Ticketer::new();
    #[cfg(not(feature = "aws-lc"))]
    return rustls::crypto::ring::Ticketer::new();
}

/// The versions from that one on.
fn versions(min: MinVersion) -> &'static [&'static SupportedProtocolVersion] {
    static ALL: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
    match min {
        MinVersion::V1_2 => &ALL,
        MinVersion::V1_3 => &ALL[..1],
    }
}

#[cfg(test)]
mod tests;
