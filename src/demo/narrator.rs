//! What the spectator reads.

use std::io::{self, Write};
use std::net::SocketAddr;

use crate::liveness::{Span, Time};
use crate::sys;

/// Prints lines with the time since the start.
#[derive(Debug)]
pub struct Narrator {
    start: Time,
    admin: SocketAddr,
}

impl Narrator {
    pub fn new(admin: SocketAddr) -> Self {
        let start = sys::now();
        Self { start, admin }
    }

    /// Something that `who` does or sees; further lines are indented.
    pub fn say(&self, who: &str, what: &str) {
        let at = (sys::now() - self.start).as_millis();
        let seconds = format!("{}.{}s", at / 1000, at % 1000 / 100);
        let what = what.replace('\n', "\n                   ");
        print(&format!("{seconds:>6}  {who:<10} {what}\n"));
    }

    /// The programme: text without a time, and where the spectator can look.
    pub fn introduce(&self, text: &str) {
        let admin = self.admin;
        print(&format!(
            "{text}\nMeanwhile, look for yourself:\n  curl http://{admin}/metrics\n  \
             curl http://{admin}/connections\n\n"
        ));
    }
}

/// A spectator who has seen enough (`pulsegate demo | head`) is no failure.
fn print(text: &str) {
    let mut out = io::stdout().lock();
    let _closed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Seconds with one digit.
pub fn seconds(span: Span) -> String {
    let span = span.as_millis();
    format!("{}.{} s", span / 1000, span % 1000 / 100)
}
