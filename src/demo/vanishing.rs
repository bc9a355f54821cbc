//! The story: a client in the field vanishes.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::app::App;
use crate::liveness::{Span, Time};
use crate::sys;

use super::cast::{Client, Crowd, Ending, Service};
use super::narrator::{Narrator, seconds};
use super::stage::Stage;
use super::watch;

const OFFICE_CLIENTS: usize = 3;
const BEFORE_THE_CUT: Duration = Duration::from_secs(3);
/// The budget is 5 s; the story does not wait for ever should it be missed.
const FOUND_AT_MOST: Duration = Duration::from_secs(30);

const MAP: &str = "\
pulsegate demo: four hosts in private network namespaces, one process, no privilege

  office  10.1.0.2 ---.
  field   10.2.0.2 -----  pulsegate :9000  ---  legacy service 10.3.0.2:7000
                         detect_within 5s       (trusts TCP: no keepalive, no timeout)
";

/// Tells it; takes at least `duration`.
pub fn tell(app: &App, narrator: &Narrator, stage: &Stage, duration: Duration) -> io::Result<()> {
    let start = sys::now();
    narrator.introduce(MAP);
    let service = Service::start(stage.listen()?)?;
    let crowd = Arc::new(Crowd::default());
    for n in 0..OFFICE_CLIENTS {
        crowd.join(Client::login(
            stage.office.connect()?,
            &format!("office-{n}"),
        )?);
    }
    narrator.say("office", "3 clients ask twice a second, through pulsegate");
    let mut field = Client::login(stage.field.connect()?, "field")?;
    field.ask("READ 7")?;
    narrator.say(
        "field",
        "1 client has logged in through pulsegate, and is quiet",
    );
    let direct = stage
        .connect_directly()
        .and_then(|stream| Client::login(stream, "direct"));
    if direct.is_ok() {
        narrator.say(
            "field",
            "and once more straight to the service, over the same link",
        );
    }
    thread::sleep(BEFORE_THE_CUT);

    let cut = sys::now();
    stage.cut()?;
    narrator.say(
        "field",
        "THE LINK IS CUT: no FIN, no RST, no error.\nEvery kernel still says ESTABLISHED.",
    );
    let found = watch::follow(app, narrator, field.stream().local_addr()?, FOUND_AT_MOST)?;
    tell_of_the_end(narrator, &service, &found, sys::now() - cut);
    wait_until(start, duration.saturating_sub(Duration::from_secs(3)));

    if direct.is_ok() {
        tell_of_the_unprotected(narrator, stage, cut)?;
    }
    stage.heal()?;
    if field.ask("READ 7").is_err() {
        narrator.say("field", "the link is back; the client's next line is answered with RST,\nso it knows, and can connect again");
    }
    let (asked, answered) = crowd.disperse();
    narrator.say(
        "office",
        &format!("{asked} questions, {answered} answers: nobody here has noticed anything"),
    );
    wait_until(start, duration);
    Ok(())
}

fn tell_of_the_end(narrator: &Narrator, service: &Service, found: &watch::Closed, after: Span) {
    let after = seconds(after);
    let reason = &found.reason;
    if let Some((evidence, silent)) = &found.proof {
        let silent = seconds(*silent);
        narrator.say(
            "pulsegate",
            &format!("FOUND {after} after the cut: {reason}, evidence {evidence}\nThe last sign of life was {silent} ago; both legs are closed."),
        );
    } else {
        narrator.say(
            "pulsegate",
            &format!("closed {after} after the cut: {reason}"),
        );
    }
    // The service's thread needs a moment to log what it saw.
    thread::sleep(Duration::from_millis(300));
    let saw = match service.ending_of("field") {
        Some(Ending::Aborted) => {
            "its connection was aborted (ECONNRESET);\nthread, socket and session are free again"
        }
        Some(Ending::Finished) => "its connection was finished",
        None => "it has noticed nothing",
    };
    narrator.say("service", saw);
}

fn tell_of_the_unprotected(narrator: &Narrator, stage: &Stage, cut: Time) -> io::Result<()> {
    let since = seconds(sys::now() - cut);
    let held = stage.established_with_field()?;
    narrator.say(
        "service",
        &format!(
            "WITHOUT pulsegate: {held} connection of the vanished client, {since} after the cut,\n\
             is still ESTABLISHED; its thread waits for ever (kernel keepalive: 2 h 11 min)"
        ),
    );
    Ok(())
}

fn wait_until(start: Time, span: Duration) {
    let end = start + span.into();
    thread::sleep(Duration::from(end - sys::now()));
}
