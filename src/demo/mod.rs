//! `pulsegate demo`: a client vanishes for real, and is found.
//!
//! A line-based legacy service, the proxy, a few clients that talk and one that vanishes, all in
//! this process. Each host is a network namespace, so that the link of the one client can be cut
//! silently; that takes no privilege where the system allows user namespaces. The admin endpoint
//! stays in the namespace of the caller, who can look at everything with curl.
//!
//! Where namespaces are forbidden, `loopback` shows what can be shown without: a peer that
//! aborts, one that half-closes, one that stops reading.

#![allow(
    clippy::disallowed_methods,
    reason = "a story is told in real time, on threads that carry no session"
)]

mod cast;
mod loopback;
mod narrator;
mod stage;
mod vanishing;
mod watch;

use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use clap::Args;

use crate::admin::Control;
use crate::app::{App, AppError, Source, Succession};
use crate::config;
use crate::exit::{self, Exit};
use crate::lifecycle::EndSignals;
use crate::server::Hooks;
use crate::sys::netns;

use narrator::Narrator;
use stage::Stage;

/// Flags of `pulsegate demo`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// How long it takes, from 12s; where no link can be cut, about 10s whatever is given
    #[arg(long, value_name = "DURATION", default_value = "20s", value_parser = long_enough)]
    duration: Duration,
    /// Go on after the end until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Where to serve metrics and /connections
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9900", value_parser = of_this_host)]
    admin: SocketAddr,
}

/// The shortest time in which the vanished client is found and the rest can be told.
const SHORTEST: Duration = Duration::from_secs(12);

fn long_enough(text: &str) -> Result<Duration, String> {
    match config::duration(text) {
        Ok(span) if span < SHORTEST => Err("the story takes 12s at least".to_owned()),
        read => read,
    }
}

/// An address, or a name of one.
fn of_this_host(text: &str) -> Result<SocketAddr, String> {
    let found = text.to_socket_addrs().map_err(|error| error.to_string())?;
    let found = found.min_by_key(SocketAddr::is_ipv6);
    found.ok_or_else(|| "has no address".to_owned())
}

/// Plays the demo. To be called first in `main`: the way into a namespace is open only as long as
/// the process has one thread.
#[must_use]
pub fn run(options: &Options) -> ExitCode {
    let allowed = netns::prepare();
    let played = match allowed.and_then(|()| Stage::build()) {
        Ok(stage) => play_vanishing(options, Arc::new(stage)),
        Err(reason) => play_loopback(options, &reason.to_string()),
    };
    match played {
        Ok(()) => Exit::Ok.into(),
        Err(error) => {
            exit::complain(&format!("pulsegate: {error}"));
            match error {
                AppError::Admin { .. } => Exit::CannotListen.into(),
                _ => Exit::Failure.into(),
            }
        }
    }
}

fn play_vanishing(options: &Options, stage: Arc<Stage>) -> Result<(), AppError> {
    let inside = stage.clone();
    let hooks = Hooks {
        on_start: Some(Arc::new(move || inside.proxy.enter())),
    };
    let flags = [
        ("listen", format!("0.0.0.0:{}", stage::PROXY_PORT)),
        ("upstream", stage.service_address().to_string()),
        ("detect-within", "5s".to_owned()),
        ("probe-interval", "1s".to_owned()),
    ];
    perform(options, &flags, &hooks, move |app, narrator, duration| {
        vanishing::tell(app, narrator, &stage, duration)
    })
}

fn play_loopback(options: &Options, reason: &str) -> Result<(), AppError> {
    let address = loopback::free_address()?;
    let service = cast::Service::start(loopback::listener()?)?;
    let flags = [
        ("listen", address.to_string()),
        ("upstream", service.address.to_string()),
        ("half-close-timeout", "4s".to_owned()),
        ("stall-timeout", "4s".to_owned()),
    ];
    let reason = reason.to_owned();
    perform(
        options,
        &flags,
        &Hooks::default(),
        move |app, narrator, _| loopback::tell(app, narrator, &reason, address, &service),
    )
}

/// Starts the proxy, tells the story on a thread of its own, and ends with it.
fn perform(
    options: &Options,
    flags: &[(&str, String)],
    hooks: &Hooks,
    story: impl FnOnce(&App, &Narrator, Duration) -> std::io::Result<()> + Send + 'static,
) -> Result<(), AppError> {
    let common = [
        ("admin", options.admin.to_string()),
        ("workers", "1".to_owned()),
        ("drain-timeout", "1s".to_owned()),
    ];
    let flags = [flags, &common].concat();
    let config = config::from_flags(&flags).map_err(std::io::Error::other)?;
    let app = App::start(config, Source::default(), hooks, Succession::None)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (told, options) = (app.clone(), options.clone());
    thread::spawn(move || {
        let narrator = Narrator::new(options.admin);
        // The endpoint listens a moment after this thread starts; an address that is taken ends
        // the demo before it has begun.
        thread::sleep(Duration::from_millis(200));
        if let Err(error) = story(&told, &narrator, options.duration) {
            narrator.say("demo", &format!("cannot go on: {error}"));
        }
        if options.keep {
            narrator.say("demo", "kept running; Ctrl-C ends it");
            loop {
                thread::park();
            }
        }
        Control::drain(&*told);
    });
    runtime.block_on(async {
        let mut signals = EndSignals::install()?;
        app.serve(&mut signals).await.map(drop)
    })
}
