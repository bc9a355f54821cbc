//! TLS over a leg: the handshake, and the layer that turns payload into records and back.
//!
//! Sessions use the unbuffered interface of rustls, so that an idle one holds no buffer. Whoever serves
//! or asks a few connections (the admin address, checks, `probe`) uses tokio-rustls with [`provider`].

mod connection;
mod failure;
mod handshake;
mod judge;
mod layer;
pub mod stream;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

pub use self::failure::HandshakeError;
pub use self::handshake::{Established, Handshake, Side, note_server_name};
pub use self::judge::{Judge, Shown};
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

#[cfg(test)]
mod tests;
