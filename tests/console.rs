//! The console in a browser without a screen (Chromium), with a process of known figures behind it.
//!
//! Chromium and its driver come from `.ci/install`. Without them the tests show as ignored; with `CI` set they
//! fail. `PULSEGATE_PICTURES=DIR` has a picture of each view written there; `.ci/pictures` makes those of
//! the README.

#![allow(
    clippy::disallowed_methods,
    reason = "waits for a browser in real time"
)]

mod console {
    pub mod browser;
    pub mod process;
}

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

use console::browser::Browser;
use console::process::{Process, TOKEN};

/// Each needs a browser of its own.
type Body = fn(&Browser, &Process);

const CASES: [(&str, Body); 7] = [
    ("every_view_shows_what_the_routes_say", every_view),
    ("sessions_are_sorted_filtered_and_paused", connections),
    ("a_session_is_asked_and_ended_with_a_reason", actions),
    ("the_keyboard_is_enough", keyboard),
    ("a_small_screen_and_the_dark_show_it_all", small_and_dark),
    ("what_a_stranger_chose_is_text", foreign_text),
    ("changes_take_the_token", token),
];

fn trial((name, body): (&'static str, Body)) -> Trial {
    let missing = ["/usr/bin/chromium", "/usr/bin/chromedriver"]
        .into_iter()
        .find(|tool| !Path::new(tool).exists());
    let Some(missing) = missing else {
        return Trial::test(name, move || run(body));
    };
    if std::env::var_os("CI").is_some() {
        let why = format!("missing, run .ci/install: {missing}");
        return Trial::test(name, || Err(why.into()));
    }
    eprintln!("SKIPPED: {name}: missing, run .ci/install: {missing}");
    Trial::test(name, || Ok(())).with_ignored_flag(true)
}

fn run(body: Body) -> Result<(), Failed> {
    let process = Process::start();
    let browser = Browser::start();
    browser.size(1280, 600);
    browser.open(&process.url());
    browser.until("document.getElementById('status').textContent === 'live'");
    body(&browser, &process);
    let complaints = browser.complaints();
    assert!(complaints.is_empty(), "{complaints:?}");
    Ok(())
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // A browser takes two processors.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, CASES.into_iter().map(trial).collect()).exit_code()
}

/// Goes to a view by its tab, and waits for the text that shows that it has come.
fn go(browser: &Browser, view: &str, shows: &str) {
    browser.run(&format!(
        "document.querySelector('nav a[href=\"#/{view}\"]').click()"
    ));
    browser.until_text(view, shows);
}

fn picture(browser: &Browser, name: &str) {
    if let Some(directory) = std::env::var_os("PULSEGATE_PICTURES") {
        browser.picture(&PathBuf::from(directory).join(format!("{name}.png")));
    }
}

fn every_view(browser: &Browser, _: &Process) {
    browser.until_text("overview", "Half-open now");
    browser.until_text("overview", "10.0.3.7");
    // Some seconds of the plots.
    browser.until("points.length > 8");
    picture(browser, "overview");
    go(browser, "listeners", "127.0.0.1:9000");
    browser.until_text("endpoint-rows", "ejected");
    picture(browser, "listeners");
    go(browser, "connections", "50 shown, 120 matched, 120 in all");
    picture(browser, "connections");
    browser.run("document.querySelector('#rows a').click()");
    browser.until_text("session", "downstream_dead in");
    browser.until_text("session", "TLSv1.3");
    picture(browser, "session");
    go(browser, "found", "upstream_stalled");
    picture(browser, "found");
    go(browser, "config", "listeners:");
    browser.until_text("config", "Changes are accepted at this address.");
    picture(browser, "config");
}

fn connections(browser: &Browser, process: &Process) {
    go(browser, "connections", "50 shown, 120 matched");
    browser.run("document.querySelector('[data-key=received]').click()");
    browser.until("document.querySelector('#rows a').textContent === '120'");
    browser.run("document.getElementById('more').click()");
    browser.until_text("connections", "100 shown, 120 matched");
    browser.run("location.hash = '/connections?condition=suspect'");
    browser.until_text("connections", "3 shown, 3 matched, 120 in all");
    browser.run("document.querySelector('button[type=reset]').click()");
    browser.until_text("connections", "100 shown, 120 matched");
    browser.type_into("[name=peer]", "192.0.2.7");
    browser.until_text("connections", "1 shown, 1 matched");
    browser.type_into("[name=peer]", "x");
    browser.until_text("message", "peer: expected an IP address or IP:port");
    browser.run("document.querySelector('button[type=reset]').click()");
    browser.until_text("connections", "120 matched");
    browser.run("document.getElementById('pause').click()");
    browser.until("document.getElementById('pause').ariaPressed === 'true'");
    process.add_a_session();
    browser.until(&format!(
        "points.length > {}",
        browser.value("points.length + 3")
    ));
    assert!(browser.text("count").contains("120 in all"));
    browser.run("document.getElementById('pause').click()");
    browser.until_text("connections", "121 in all");
}

fn actions(browser: &Browser, process: &Process) {
    browser.run("location.hash = '/session/2'");
    browser.until_text("session", "suspect");
    browser.run("document.getElementById('verify').click()");
    browser.until_text("answer", "downstream silent (keepalive) after 802ms");
    browser.run("document.getElementById('end').click()");
    browser.until("document.getElementById('ask').open");
    picture(browser, "end");
    browser.run("document.querySelector('#ask [value=no]').click()");
    assert!(process.ended().is_empty());
    browser.run("document.getElementById('end').click()");
    browser.type_into("#ask [name=reason]", "the PLC was replaced");
    browser.run("document.querySelector('#ask [value=yes]').click()");
    browser.until_text("answer", "session 2 is being ended");
    let ended = [(2, Some("the PLC was replaced".to_owned()))];
    assert_eq!(process.ended(), ended);
    go(browser, "config", "listeners:");
    browser.run("document.getElementById('drain').click()");
    browser.run("document.querySelector('#ask [value=yes]').click()");
    browser.until_text("status", "draining");
}

fn keyboard(browser: &Browser, _: &Process) {
    const TAB: char = '\u{e004}';
    const ENTER: char = '\u{e007}';
    // The tabs come first.
    browser.keys(&[TAB, TAB, TAB, ENTER]);
    browser.until_text("connections", "50 shown");
    browser.keys(&['/']);
    browser.until("document.activeElement.name === 'peer'");
    browser.keys(&['1', '9', '2', '.', '0', '.', '2', '.', '9']);
    browser.until_text("connections", "1 shown, 1 matched");
    // To the link of the session: past the other filters, the buttons and the columns that sort.
    browser.keys(&[TAB; 3]);
    browser.until("document.activeElement.id === 'pause'");
    browser.keys(&[TAB; 7]);
    browser.until("document.activeElement.hash === '#/session/9'");
    // It is drawn again each second, and the place is kept.
    browser.until(&format!(
        "points.length > {}",
        browser.value("points.length + 2")
    ));
    assert_eq!(browser.value("document.activeElement.hash"), "#/session/9");
    browser.keys(&[ENTER]);
    browser.until_text("session", "Phase");
}

fn small_and_dark(browser: &Browser, _: &Process) {
    let back = "getComputedStyle(document.body).backgroundColor";
    let light = browser.value(back);
    browser.scheme("dark");
    assert_ne!(browser.value(back), light);
    browser.until_text("overview", "10.0.3.7");
    browser.until("points.length > 2");
    picture(browser, "dark");
    browser.size(360, 740);
    for (view, shows) in [
        ("overview", "Half-open now"),
        ("listeners", "127.0.0.1:9000"),
        ("connections", "120 matched"),
        ("found", "10.0.3.7"),
        ("config", "listeners:"),
    ] {
        go(browser, view, shows);
        let wide = browser.value("document.documentElement.scrollWidth");
        assert_eq!(wide, "360", "{view}");
        picture(browser, &format!("small-{view}"));
    }
    browser.run("location.hash = '/session/1'");
    browser.until_text("session", "Phase");
    assert_eq!(browser.value("document.documentElement.scrollWidth"), "360");
    picture(browser, "small-session");
}

fn foreign_text(browser: &Browser, _: &Process) {
    browser.run("location.hash = '/session/3'");
    browser.until_text("session", "<img src=x onerror=alert(1)>");
    assert_eq!(browser.value("document.images.length"), "0");
}

fn token(browser: &Browser, process: &Process) {
    browser.open(&process.url_of_network());
    go(browser, "config", "with the token of admin.token_file");
    browser.run("location.hash = '/session/1'");
    browser.until_text("session", "Phase");
    browser.run("document.getElementById('verify').click()");
    browser.until_text(
        "message",
        "refused: changes are accepted here with the token",
    );
    browser.type_into("[name=token]", TOKEN);
    browser.run("document.getElementById('verify').click()");
    browser.until_text("answer", "upstream alive (answered)");
}
