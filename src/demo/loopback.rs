//! What can be shown on the loopback interface alone, where no link can be cut.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use socket2::SockRef;

use crate::app::App;

use super::cast::{Client, Service};
use super::narrator::Narrator;
use super::watch;

const AT_MOST: Duration = Duration::from_secs(30);

/// A listener for the service.
pub fn listener() -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
}

/// An address that was free a moment ago, for the proxy.
pub fn free_address() -> io::Result<SocketAddr> {
    listener()?.local_addr()
}

/// Tells of three clients that misbehave.
pub fn tell(
    app: &App,
    narrator: &Narrator,
    reason: &str,
    proxy: SocketAddr,
    service: &Service,
) -> io::Result<()> {
    narrator.introduce(&format!(
        "pulsegate demo: this system lets it have no network namespaces ({reason}),\n\
         so no link can be cut and no client can really vanish. Instead, over loopback, three\n\
         clients that misbehave.\n"
    ));
    let login = |name: &str| Client::login(TcpStream::connect(proxy)?, name);
    let told = |client: SocketAddr| -> io::Result<()> {
        let closed = watch::follow(app, narrator, client, AT_MOST)?;
        narrator.say("pulsegate", &format!("closed both legs: {}", closed.reason));
        Ok(())
    };

    let aborting = login("aborting")?;
    narrator.say("client", "aborts its connection (RST)");
    SockRef::from(aborting.stream()).set_linger(Some(Duration::ZERO))?;
    let address = aborting.stream().local_addr()?;
    drop(aborting);
    told(address)?;
    if let Some(ending) = service.ending_of("aborting") {
        let saw = format!("saw: {ending:?}; an abort stays an abort");
        narrator.say("service", &saw);
    }

    let mut half = login("half-closed")?;
    half.ask("LEAK")?;
    half.stream().shutdown(Shutdown::Write)?;
    let half_closed = "finishes its side (FIN); the service never closes the other";
    narrator.say("client", half_closed);
    told(half.stream().local_addr()?)?;

    let mut stalled = login("stalled")?;
    stalled.tell("DUMP")?;
    narrator.say("client", "asks for 64 MiB and does not read them");
    told(stalled.stream().local_addr()?)
}
