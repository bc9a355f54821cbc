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

const CASES: [(&str, Body); 11] = [
    ("every_view_shows_what_the_routes_say", every_view),
    ("sessions_are_sorted_filtered_and_paused", connections),
    ("a_session_is_asked_and_ended_with_a_reason", actions),
    ("the_keyboard_is_enough", keyboard),
    ("a_small_screen_and_the_dark_show_it_all", small_and_dark),
    ("what_a_stranger_chose_is_text", foreign_text),
    ("changes_take_the_token", token),
    ("the_overview_keeps_its_promises_in_view", promises),
    ("listeners_and_endpoints_show_what_ends_soon", listeners),
    ("who_waits_for_a_place_is_shown_beside_its_holder", waiting),
    ("a_session_has_a_time_line_and_its_clocks", time_line),
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

/// What the process would have told a page that has been open for five minutes.
const MINUTES: &str = "
    const first = points[0];
    const before = (s) => {
        const wave = Math.round(6 * Math.sin(s / 37) + 3 * Math.sin(s / 11));
        return { ...first, now: first.now - s, sessions: first.sessions + wave,
            foundNew: s % 90 === 0 ? 1 : 0, failedNew: s === 200 ? 1 : 0,
            hung: s > 160 ? 1 : s > 70 ? 2 : 3, rate: 270000 * (1 + 0.3 * Math.sin(s / 23) + 0.1 * Math.sin(s / 3)) };
    };
    points = [...Array.from({ length: 300 }, (_, i) => before(300 - i)), ...points.slice(1)];";

/// What a page that has been open for a minute has seen of a client that vanished.
const SILENCE: &str = "
    const now = performance.now();
    const { downstream, upstream } = seen.before;
    const each6s = (last, kinds) => Array.from({ length: 7 }, (_, i) => ({ at: now - last - 6000 * (6 - i), kind: kinds[i % 2] }));
    const questions = [];
    for (let ago = downstream.last_life_ms - 6000; ago > 0; ago -= 2000) questions.push({ at: now - ago, kind: 'asked' });
    seen.marks.downstream = [...each6s(downstream.last_life_ms, ['data', 'answer']), ...questions];
    seen.marks.upstream = each6s(upstream.last_life_ms, ['answer', 'data']);
    seen.since = now - 60000;";

fn picture(browser: &Browser, name: &str) {
    if let Some(directory) = std::env::var_os("PULSEGATE_PICTURES") {
        browser.picture(&PathBuf::from(directory).join(format!("{name}.png")));
    }
}

fn every_view(browser: &Browser, _: &Process) {
    browser.until_text("overview", "Half-open now");
    browser.until_text("overview", "10.0.3.7");
    // Some minutes of the plots.
    browser.until("points.length > 2");
    browser.run(MINUTES);
    browser.until("points.length > 302");
    browser.size(1280, 556);
    picture(browser, "overview");
    browser.size(1280, 600);
    go(browser, "listeners", "127.0.0.1:9000");
    browser.until_text("endpoint-rows", "ejected");
    picture(browser, "listeners");
    go(browser, "connections", "50 shown, 120 matched, 120 in all");
    browser.size(1280, 412);
    picture(browser, "connections");
    browser.size(1280, 600);
    browser.run("document.querySelector('#rows a').click()");
    browser.until_text("session", "downstream_dead in");
    browser.until_text("session", "TLSv1.3");
    browser.size(1280, 1200);
    picture(browser, "session");
    browser.size(1280, 600);
    go(browser, "waiting", "who waits");
    browser.until_text("queue", "queue_timeout in");
    picture(browser, "waiting");
    go(browser, "found", "upstream_stalled");
    picture(browser, "found");
    go(browser, "config", "listeners:");
    browser.until_text("config", "Changes are accepted at this address.");
    browser.until_text("explain", "vanished, idle");
    browser.until_text("reloads", "sighup");
    picture(browser, "config");
}

fn connections(browser: &Browser, process: &Process) {
    go(browser, "connections", "50 shown, 120 matched");
    browser.run("document.querySelector('#connections .words summary').click()");
    browser.until_text(
        "connections",
        "what ends the session next if nothing changes",
    );
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
    browser.until_text("reloads", "listeners[db].backlog: 0 is not positive");
    browser.run("document.getElementById('reload').click()");
    browser.until_text("reloaded", "needs a restart: workers");
    browser.until_text("reloads", "admin");
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
    browser.run("location.hash = '/session/2'");
    browser.until_text("lines", "questions are unanswered");
    picture(browser, "dark-session");
    browser.size(360, 740);
    // The longest name that a listener may have.
    browser.run("document.querySelector('#filters select').append(new Option('w'.repeat(63)))");
    for (view, shows) in [
        ("overview", "Half-open now"),
        ("listeners", "127.0.0.1:9000"),
        ("connections", "120 matched"),
        ("waiting", "verify"),
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

fn promises(browser: &Browser, _: &Process) {
    browser.until_text("tiles", "Live peers killed as dead");
    browser.until("document.getElementById('tiles').innerText.includes('by construction')");
    browser.until(
        "/Slowest detection\\s+10[0-5] %\\s+of D/.test(document.getElementById('tiles').innerText)",
    );
    // The tolerance is 5 %, and at least 0.3 s: 113 % of a short D is in time, 106 % of a long one is not.
    let slowest = |silent: u32, promised: u32| {
        browser.value(&format!(
            "(() => {{ found.ends = [{{ reason: 'upstream_dead', silent_ms: {silent}, detect_within_ms: {promised} }}]; \
             overview(); const tile = document.querySelector('#tiles section:nth-child(5) .big'); \
             return tile.textContent + tile.className; }})()"
        ))
    };
    assert_eq!(slowest(2_260, 2_000), "113 %big good");
    assert_eq!(slowest(31_800, 30_000), "106 %big bad");
    // A restart or a reload takes nothing back.
    let again = "(() => { take({ ...summary, monotonic_ms: summary.monotonic_ms + 1, listeners: summary.listeners.slice(1).map( \
         (l) => ({ ...l, found: 0, connect_failures: 0 })) }); overview(); return document.getElementById('plots').innerText; })()";
    let plots = browser.value(again);
    assert!(!plots.contains("-"), "{plots}");
    browser.until_text("lost", "db 2 of 3");
    browser.until_text("host-line", "warn somaxconn");
    browser.run("document.querySelector('#host summary').focus()");
    browser.keys(&['\u{e007}']);
    browser.until_text("checks", "sysctl -w net.core.somaxconn=4096");
    // It is asked for once in a minute.
    browser.until("points.length > 4");
    let asked =
        "performance.getEntriesByType('resource').filter((e) => e.name.endsWith('/doctor')).length";
    assert_eq!(browser.value(asked), "1");
    browser.until_text("overview", "pulsegate scan");
}

fn listeners(browser: &Browser, _: &Process) {
    go(browser, "listeners", "127.0.0.1:9000");
    browser.until_text("listener-rows", "61 d / 5 d");
    browser.until_text("listener-rows", "require / off");
    browser.until("/[23]\\.\\d\\/s/.test(document.getElementById('listener-rows').innerText)");
    // The one that pulsegate warns of, too.
    let marked = "document.querySelector('#listener-rows .bad').textContent";
    browser.until(&format!("{marked} === '5 d' || {marked} === '3'"));
    browser.until_text("endpoint-rows", "passed 0.8s ago");
    browser.until_text("endpoint-rows", "failed 0.8s ago");
    browser.until_text("endpoint-rows", "4m12s");
    browser.run("document.querySelector('#listener-rows a[href^=\"#/waiting\"]').click()");
    browser.until_text("line", "plc: who waits");
}

fn waiting(browser: &Browser, process: &Process) {
    const TAB: char = '\u{e004}';
    // To the tab, then past the others to the listener, the holder and the first who waits.
    browser.keys(&[TAB, TAB, TAB, TAB, '\u{e007}']);
    browser.until_text("waiting", "the peers of the holders are asked each second");
    browser.until("document.querySelectorAll('#queue a').length === 2");
    browser.keys(&[TAB; 5]);
    browser.until("document.activeElement.hash === '#/session/119'");
    browser.until_text("limited", "1/1");
    // Who came first is the first.
    let ids = |table: &str| {
        browser.value(&format!(
            "[...document.querySelectorAll('#{table} a')].map((a) => a.textContent)"
        ))
    };
    browser.until_text("queue", "10.0.3.9");
    assert_eq!(
        (ids("holders"), ids("queue")),
        ("118".into(), "119,120".into())
    );
    browser.until_text("queue", "unless a place is free");
    // Of many sessions the lists are asked for each 5 s only.
    process.set_sessions(2_000);
    browser.until("summary.sessions === 2000");
    let lists = "performance.getEntriesByType('resource').filter((e) => e.name.includes('/connections?')).length";
    let number = |expression: &str| browser.value(expression).parse::<u32>().expect("a number");
    let before = number(lists);
    let points = number("points.length");
    browser.until(&format!("points.length >= {}", points + 8));
    // Two lists each time, twice or three times.
    assert!(number(lists) - before <= 6, "{before} {}", number(lists));
    process.set_sessions(120);
    browser.until("summary.sessions === 120");
    browser.until("document.activeElement.hash === '#/session/119'");
    browser.keys(&['\u{e007}']);
    browser.until_text("session", "queued");
    browser.until_text("lines", "sign");
}

fn time_line(browser: &Browser, _: &Process) {
    browser.run("location.hash = '/session/1'");
    browser.until_text("session", "unless heard");
    browser.until_text("clocks", "idle_timeout");
    browser.until_text("tcp", "tcpi_last_ack_recv_ms");
    // Signs of life come with time, one after the other.
    browser.until("seen.marks.upstream.length > 1");
    browser.until("document.querySelectorAll('#lines line.answer').length > 2");
    browser.until("document.querySelectorAll('#lines line.data').length > 0");
    browser.run("location.hash = '/session/2'");
    browser.until_text("lines", "questions are unanswered");
    browser.until("document.querySelectorAll('#lines line.asked').length > 1");
    browser.until("document.querySelectorAll('#lines .silence.bad, #lines line.end').length > 1");
    browser.run(SILENCE);
    browser.until("document.querySelectorAll('#lines line').length > 18");
    browser.size(1280, 350);
    picture(browser, "time-line");
    // The device is asked in its own protocol.
    browser.run("location.hash = '/session/118'");
    browser.until_text("session", "Heartbeat (modbus)");
    browser.until("document.querySelectorAll('#lines line.beat').length > 0");
    // What was seen of another session is forgotten.
    assert_eq!(browser.value("seen.id"), "118");
    // So is what was seen of one with the same number before the process was started again.
    browser.run("seen.old = 'yes'; seen.before.age_ms += 1e9");
    browser.until("!seen.old");
}
