//! `pulsegate top`: listeners and sessions of a running pulsegate on one screen, each second.

mod screen;
mod terminal;

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use tokio::runtime::Builder;

use super::remote::{Endpoint, misused, report};
use super::{Output, exit_of, put_out};
use crate::admin::client::{self, Format, Target, Which};
use crate::exit::Exit;
use crate::lifecycle::EndSignals;
use crate::sys;
use crate::telemetry::Colours;
use crate::view::OnSilent;
use screen::{Frame, Query, State, Wish};
use terminal::Terminal;

const EVERY: Duration = Duration::from_secs(1);
/// So soon a key is answered, and news is shown.
const GLANCE: Duration = Duration::from_millis(100);
/// Columns and sessions where there is no terminal.
const PLAIN_WIDTH: usize = 120;
const PLAIN_SESSIONS: usize = 100;

pub(super) const ABOUT: &str = screen::HELP;

/// `pulsegate top`.
#[derive(Args)]
pub(super) struct Top {
    #[command(flatten)]
    endpoint: Endpoint,
    #[command(flatten)]
    output: Output,
    /// Print one screen, and return
    #[arg(long)]
    once: bool,
}

pub(super) fn top(args: &Top) -> ExitCode {
    let target = match args.endpoint.reach() {
        Ok(target) => target,
        Err(why) => return report(Err(why)),
    };
    if args.output.json || args.once {
        return print(&target, args);
    }
    // Before the terminal is changed: whatever ends this must find it as it was.
    let is_over = match ending() {
        Ok(is_over) => is_over,
        Err(error) => return report(Err(format!("signals cannot be heard: {error}"))),
    };
    match Terminal::enter() {
        Ok(terminal) => match watch(&target, terminal, &is_over) {
            Ok(()) => Exit::Ok.into(),
            Err(error) => report(Err(format!("the terminal: {error}"))),
        },
        Err(error) => misused(&format!(
            "top needs a terminal ({error}); --once and --json do without"
        )),
    }
}

/// Is true from SIGTERM, SIGINT or SIGHUP on.
fn ending() -> io::Result<Arc<AtomicBool>> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let mut signals = runtime.block_on(async { EndSignals::install() })?;
    let is_over = Arc::new(AtomicBool::new(false));
    let over = is_over.clone();
    let heard = async move {
        let hangups = signals.hangups();
        tokio::select! {
            _ = signals.next() => {}
            () = hangups.notified() => {}
        }
        over.store(true, Ordering::Relaxed);
    };
    let thread = thread::Builder::new().name("signals".to_owned());
    thread.spawn(move || runtime.block_on(heard))?;
    Ok(is_over)
}

/// Without a terminal: once, or as JSON each second.
fn print(target: &Target, args: &Top) -> ExitCode {
    let state = State::default();
    let mut summary = None;
    let (_nobody, pause) = channel::<()>();
    loop {
        let frame = match fetch(target, &state.query(PLAIN_SESSIONS), summary.take()) {
            Ok(frame) if frame.trouble.is_empty() => frame,
            Ok(Frame { trouble: why, .. }) | Err(why) => return report(Err(why)),
        };
        let text = if args.output.json {
            let both = json!({ "summary": frame.summary, "connections": frame.list });
            format!("{both}\n")
        } else {
            let size = (PLAIN_WIDTH, usize::MAX);
            let lines = screen::lines(&state, Some(&frame), size, Colours::Plain);
            lines.join("\n") + "\n"
        };
        let written = put_out(&text);
        if args.once || written.is_err() {
            return exit_of(&written);
        }
        let _waited = pause.recv_timeout(EVERY);
        summary = Some(frame.summary);
    }
}

/// What the thread that asks is told.
enum Order {
    Show(Query),
    Verify(u64),
    End(u64, String),
}

enum News {
    Frame(Box<Frame>),
    Note(String),
    Failed(String),
}

/// Until the operator has seen enough. What is asked takes its time on another thread.
fn watch(target: &Target, mut terminal: Terminal, is_over: &AtomicBool) -> io::Result<()> {
    let mut state = State::new(target.to_string());
    let (orders, wanted) = channel();
    let (told, news) = channel();
    let asked = target.clone();
    thread::spawn(move || ask(&asked, &wanted, &told));
    let mut frame = None;
    let mut query = None;
    let mut noted = sys::now();
    let mut shown = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        let (width, height) = terminal.size();
        let now = state.query(height);
        if query.as_ref() != Some(&now) {
            query = Some(now.clone());
            let _over = orders.send(Order::Show(now));
        }
        for said in news.try_iter() {
            match said {
                News::Frame(next) if !state.paused => {
                    frame = Some(*next);
                    state.refreshed((sys::now() - noted).into());
                }
                News::Frame(_) => {}
                News::Note(note) => (state.note, noted) = (note, sys::now()),
                News::Failed(why) => state.trouble = why,
            }
        }
        let colours = terminal.colours();
        let lines = screen::lines(&state, frame.as_ref(), (width, height), colours);
        if lines != shown {
            terminal.show(&lines)?;
            shown = lines;
        }
        for key in terminal.keys(GLANCE)? {
            noted = sys::now();
            match state.press(key, frame.as_ref()) {
                Wish::Nothing => {}
                Wish::Quit => return Ok(()),
                Wish::Verify(id) => drop(orders.send(Order::Verify(id))),
                Wish::End(id, reason) => drop(orders.send(Order::End(id, reason))),
            }
        }
    }
    Ok(())
}

fn ask(target: &Target, orders: &Receiver<Order>, news: &Sender<News>) {
    let mut query = Query::default();
    let mut summary = None;
    loop {
        let note = match orders.recv_timeout(EVERY) {
            Ok(Order::Show(wanted)) => {
                query = wanted;
                None
            }
            Ok(Order::Verify(id)) => Some(verify(target, id)),
            Ok(Order::End(id, reason)) => Some(end(target, id, &reason)),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if let Some(note) = note {
            let _over = news.send(News::Note(note));
        }
        let said = match fetch(target, &query, summary.take()) {
            Ok(frame) => {
                summary = Some(frame.summary.clone());
                News::Frame(Box::new(frame))
            }
            Err(why) => News::Failed(why),
        };
        if news.send(said).is_err() {
            return;
        }
    }
}

fn fetch(target: &Target, query: &Query, before: Option<Value>) -> Result<Frame, String> {
    let wrong =
        |error: serde_json::Error| format!("{target}: not the answer of a pulsegate: {error}");
    let query: Vec<_> = query
        .iter()
        .map(|(n, v)| (n.as_str(), v.as_str()))
        .collect();
    let read = |text: String| serde_json::from_str::<Value>(&text).map_err(wrong);
    let summary = client::summary(target).and_then(read)?;
    // A filter that is refused hides no figures.
    let list = client::connections(target, &query, Format::Json).and_then(read);
    let (list, trouble) = match list {
        Ok(list) => (list, String::new()),
        Err(why) => (Value::Null, why),
    };
    Ok(Frame {
        before,
        summary,
        list,
        trouble,
    })
}

/// One line for both peers.
fn verify(target: &Target, id: u64) -> String {
    let ids = [id];
    let found = client::verify(target, Which::Ids(&ids), OnSilent::Report, Format::Json);
    let found = match found {
        Ok(found) if found.errors.is_empty() => found,
        Ok(found) => return format!("session {id}: not verified: {}", found.errors.join("; ")),
        Err(why) => return format!("session {id}: not verified: {why}"),
    };
    let told: Value = serde_json::from_str(&found.text).unwrap_or_default();
    let session = &told["sessions"][0];
    let leg = |name: &str| {
        let leg = session.get(name).filter(|leg| !leg.is_null())?;
        let word = |key: &str| leg[key].as_str().unwrap_or("-").to_owned();
        Some(format!("{name} {} ({})", word("answer"), word("evidence")))
    };
    let legs = [leg("downstream"), leg("upstream")];
    let legs: Vec<_> = legs.into_iter().flatten().collect();
    format!("session {id}: {}", legs.join(", "))
}

fn end(target: &Target, id: u64, reason: &str) -> String {
    let query = [("reason", reason)];
    let query = if reason.is_empty() { &[][..] } else { &query };
    let ended = client::kill(target, id, query);
    ended.unwrap_or_else(|why| format!("session {id}: not ended: {why}"))
}
