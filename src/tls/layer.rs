//! Payload to records and back.

use std::io;
use std::task::{Context, Poll};

use crate::net::leg::{Layer, Wire};

/// TLS of one leg.
#[derive(Debug)]
pub(super) struct Tls;

impl Layer for Tls {
    fn poll_read(
        &mut self,
        _wire: &mut Wire,
        _cx: &mut Context<'_>,
        _buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Pending
    }

    fn poll_write(
        &mut self,
        _wire: &mut Wire,
        _cx: &mut Context<'_>,
        _buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Pending
    }

    fn poll_flush(&mut self, _wire: &mut Wire, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_finish(&mut self, _wire: &mut Wire, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn is_flushed(&self) -> bool {
        true
    }

    fn buffered(&self) -> usize {
        0
    }
}
