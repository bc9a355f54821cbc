//! Heartbeats inside live connections of real services: one that stops is found, one that is slow is not, and
//! neither end sees anything.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::Case;
use crate::heartbeat_bytes::say;
use crate::mariadb::{MariaDb, SERVER as MARIADB, mariadb};
use crate::postgres::{Postgres, Session};
use crate::process::{Process, free_address, read_to_any_end, tool};
use crate::pulsegate::{Pulsegate, closed, connect};
use crate::redis::{Client, Redis};
use crate::support::{eventually, ms};
use crate::tls::{Keys, Setup};

const REDIS: &[&str] = &["redis-server"];
pub const POSTGRES: &[&str] = &["initdb", "postgres", "psql"];

pub const CASES: &[Case] = &[
    Case::new(
        "a_redis_that_stops_is_found_by_custom_lines",
        REDIS,
        a_redis_that_stops_is_found_by_custom_lines,
    ),
    Case::new(
        "a_heartbeat_does_not_keep_a_session_past_its_idle_timeout",
        REDIS,
        a_heartbeat_does_not_keep_a_session_past_its_idle_timeout,
    ),
    Case::new(
        "a_redis_that_stops_is_found",
        REDIS,
        a_redis_that_stops_is_found,
    ),
    Case::new(
        "redis_clients_see_nothing_of_heartbeats",
        REDIS,
        redis_clients_see_nothing_of_heartbeats,
    ),
    Case::new(
        "a_memcached_that_stops_is_found",
        &["memcached"],
        a_memcached_that_stops_is_found,
    ),
    Case::new(
        "a_broker_that_stops_is_found",
        &["mosquitto"],
        a_broker_that_stops_is_found,
    ),
    Case::new(
        "a_postgres_backend_that_stops_is_found",
        POSTGRES,
        a_postgres_backend_that_stops_is_found,
    ),
    Case::new(
        "a_mariadb_that_stops_is_found",
        MARIADB,
        a_mariadb_that_stops_is_found,
    ),
    Case::new(
        "a_redis_that_stops_is_found_through_tls_on_both_legs",
        &["redis-server", "redis-cli"],
        a_redis_that_stops_is_found_through_tls_on_both_legs,
    ),
    Case::new(
        "psql_sees_nothing_of_heartbeats",
        POSTGRES,
        psql_sees_nothing_of_heartbeats,
    ),
    Case::new(
        "a_slow_answer_is_waited_for",
        REDIS,
        a_slow_answer_is_waited_for,
    ),
    Case::new(
        "a_drain_ends_sessions_between_two_answers",
        REDIS,
        a_drain_ends_sessions_between_two_answers,
    ),
    Case::new(
        "strange_answers_end_no_session",
        &[],
        strange_answers_end_no_session,
    ),
    Case::new(
        "a_wrong_profile_breaks_nothing",
        &["redis-server", "memcached"],
        a_wrong_profile_breaks_nothing,
    ),
];

/// Inline commands and simple answers of Redis are lines.
const LINES: &[&str] = &[
    "--heartbeat",
    "custom",
    "--heartbeat-delimiter",
    r"\r\n",
    "--heartbeat-send",
    r"PING\r\n",
    "--heartbeat-expect",
    r"+PONG\r\n",
    "--heartbeat-after",
    "1s",
    "--heartbeat-timeout",
    "1s",
];

/// A protocol, asked as often.
pub const fn profile(name: &'static str) -> [&'static str; 6] {
    let [after, timeout] = ["--heartbeat-after", "--heartbeat-timeout"];
    ["--heartbeat", name, after, "1s", timeout, "1s"]
}

fn exchange(stream: &mut TcpStream, request: impl AsRef<[u8]>, answer: impl AsRef<[u8]>) {
    stream.write_all(request.as_ref()).expect("send");
    let mut got = vec![0; answer.as_ref().len()];
    stream.read_exact(&mut got).expect("an answer");
    let [got, answer] = [&got, answer.as_ref()].map(String::from_utf8_lossy);
    assert_eq!(got, answer);
}

pub fn count(proxy: &Pulsegate, what: &str) -> f64 {
    let name = format!("pulsegate_heartbeats_{what}_total");
    proxy.metrics().value(&name, &[("leg", "upstream")])
}

#[track_caller]
pub fn expect_answers(proxy: &Pulsegate, answers: f64) {
    let came = eventually(ms(30_000), || count(proxy, "answered") >= answers);
    let metrics = proxy.metrics().excerpt("pulsegate_heartbeats");
    assert!(came, "{metrics}{:?}", proxy.get("/connections"));
}

/// A process that does nothing until this is dropped; its kernel answers for it.
pub struct Stopped(u32);

impl Stopped {
    pub fn new(process: u32) -> Self {
        signal(process, Signal::STOP);
        Self(process)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        signal(self.0, Signal::CONT);
    }
}

fn signal(process: u32, signal: Signal) {
    let process = i32::try_from(process).ok().and_then(Pid::from_raw);
    rustix::process::kill_process(process.expect("a process"), signal).expect("it runs");
}

/// The client is reset when a question was not answered in time, and not much later.
#[track_caller]
fn expect_found(proxy: &Pulsegate, client: &mut TcpStream, stopped: Instant) {
    let mut byte = [0];
    let error = client.read(&mut byte).expect_err("a reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    expect_ended(proxy, stopped);
}

/// One session was ended because a question was not answered in time, and not much later.
#[track_caller]
pub fn expect_ended(proxy: &Pulsegate, stopped: Instant) {
    let ended = || closed(&proxy.metrics(), "upstream_unresponsive") == 1.0;
    assert!(eventually(ms(30_000), ended), "{}", proxy.log());
    let took = stopped.elapsed();
    // A second of the answer before may be over; a second more on a busy machine.
    assert!(took >= ms(900) && took < ms(2000 + 5000), "{took:?}");
    let log = proxy.log();
    assert!(log.contains(r#"evidence="heartbeat""#), "{log}");
    assert_eq!(count(proxy, "misfit"), 0.0);
    let dead = proxy
        .metrics()
        .value("pulsegate_half_open_detected_total", &[]);
    assert_eq!(dead, 0.0);
}

fn a_redis_that_stops_is_found_by_custom_lines() {
    let redis = Redis::start();
    let proxy = Pulsegate::start(redis.address, LINES);
    let mut client = connect(proxy.address);
    exchange(&mut client, "SET a b\r\n", "+OK\r\n");
    expect_answers(&proxy, 2.0);
    let (_, page) = proxy.get("/connections").expect("the sessions");
    let heartbeat = r#""heartbeat":{"profile":"custom","state":"#;
    assert!(page.contains(heartbeat), "{page}");
    exchange(&mut client, "SET a c\r\n", "+OK\r\n");
    let _stopped = Stopped::new(redis.pid());
    expect_found(&proxy, &mut client, Instant::now());
    let metrics = proxy.metrics();
    let answered = metrics.value("pulsegate_heartbeat_answer_seconds_count", &[]);
    assert!(answered >= 2.0, "{}", metrics.excerpt("pulsegate_heart"));
}

/// Redis closes a client that says nothing for two seconds. It is asked each second, so it does not; pulsegate
/// counts payload only.
fn a_heartbeat_does_not_keep_a_session_past_its_idle_timeout() {
    let redis = Redis::start();
    let mut operator = Client::connect(redis.address);
    operator.send(&["CONFIG", "SET", "timeout", "2"]);
    assert_eq!(operator.line(), "+OK");
    let flags = [LINES, &["--idle-timeout", "6s"]].concat();
    let proxy = Pulsegate::start(redis.address, &flags);
    let mut client = connect(proxy.address);
    exchange(&mut client, "SET a b\r\n", "+OK\r\n");
    let began = Instant::now();
    assert!(read_to_any_end(&mut client).is_empty());
    let took = began.elapsed();
    assert!(took > ms(5500) && took < ms(12_000), "{took:?}");
    let seen = eventually(ms(5000), || closed(&proxy.metrics(), "idle_timeout") == 1.0);
    assert!(seen, "{}", proxy.log());
    assert!(count(&proxy, "answered") >= 3.0);
}

/// Redis runs a script, answers nobody, and has not stopped.
fn a_slow_answer_is_waited_for() {
    let redis = Redis::start();
    let proxy = Pulsegate::start(redis.address, LINES);
    let mut client = connect(proxy.address);
    exchange(&mut client, "SET a b\r\n", "+OK\r\n");
    expect_answers(&proxy, 1.0);
    let slow = "EVAL \"local t = redis.call('TIME')[1] \
                while redis.call('TIME')[1] - t < 6 do end return redis.status_reply('DONE')\" 0\r\n";
    exchange(&mut client, slow, "+DONE\r\n");
    let before = count(&proxy, "answered");
    expect_answers(&proxy, before + 1.0);
    exchange(&mut client, "GET b\r\n", "$-1\r\n");
    assert_eq!(count(&proxy, "missed"), 0.0);
    drop(client);
    proxy.expect_all_closed("finished", 1);
}

/// Those that know what a message is by more than its length.
const PROFILES: [&str; 15] = [
    "amqp",
    "custom",
    "hsms",
    "iec104",
    "irc",
    "ldap",
    "memcached",
    "modbus",
    "mqtt",
    "mysql",
    "postgres",
    "redis",
    "smpp",
    "stomp",
    "telnet",
];

/// Nothing is asked: a session in its own time, with a request that is cut, is as it would be without.
fn a_wrong_profile_breaks_nothing() {
    let (redis, memcached) = (Redis::start(), Memcached::start());
    let lines: [&[u8]; 4] = [
        b"set a 0 0 1\r\nx\r\n",
        b"get a\r\nge",
        b"t a\r\n",
        b"quit\r\n",
    ];
    let commands: [&[u8]; 4] = [
        b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\nx\r\n",
        b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n*2\r\n$3\r\nGE",
        b"T\r\n$1\r\na\r\n",
        b"*1\r\n$4\r\nQUIT\r\n",
    ];
    let services = [
        ("redis", redis.address, commands),
        ("memcached", memcached.address, lines),
    ];
    thread::scope(|scope| {
        for (own, service, pieces) in services {
            let direct = say(service, &pieces, ms(50));
            for profile in PROFILES.into_iter().filter(|profile| *profile != own) {
                let direct = direct.clone();
                scope.spawn(move || expect_unasked(service, profile, &pieces, &direct));
            }
        }
    });
}

fn expect_unasked(service: SocketAddr, profile: &str, pieces: &[&[u8]], direct: &[u8]) {
    // Both would answer a question of `custom` in lines: with this framing there is none.
    let flags = [
        "--heartbeat",
        profile,
        "--heartbeat-frame",
        "length",
        "--heartbeat-send",
        r"\0\0\0\x01p",
        "--heartbeat-expect",
        r"\0\0\0\x01P",
        "--heartbeat-after",
        "1s",
        "--heartbeat-timeout",
        "500ms",
    ];
    let proxy = Pulsegate::start(service, &flags);
    let through = say(proxy.address, pieces, ms(1500));
    assert_eq!(through, direct, "{profile}");
    let ended = eventually(ms(10_000), || closed(&proxy.metrics(), "finished") == 1.0);
    assert!(ended, "{profile}: {}", proxy.log());
    let sent = proxy
        .metrics()
        .value("pulsegate_heartbeats_sent_total", &[]);
    assert_eq!(sent, 0.0, "{profile}");
}

fn a_redis_that_stops_is_found() {
    let redis = Redis::start();
    let proxy = Pulsegate::start(redis.address, &profile("redis"));
    let mut client = connect(proxy.address);
    exchange(&mut client, "*1\r\n$4\r\nPING\r\n", "+PONG\r\n");
    expect_answers(&proxy, 2.0);
    exchange(&mut client, "*1\r\n$4\r\nPING\r\n", "+PONG\r\n");
    let _stopped = Stopped::new(redis.pid());
    expect_found(&proxy, &mut client, Instant::now());
}

/// A transaction, a blocking pop and a subscription, each across several moments at which it would be asked.
fn redis_clients_see_nothing_of_heartbeats() {
    let redis = Redis::start();
    let proxy = Pulsegate::start(redis.address, &profile("redis"));
    let [mut queues, mut pops, mut listens] = [(); 3].map(|()| Client::connect(proxy.address));
    for client in [&mut queues, &mut pops, &mut listens] {
        client.send(&["PING"]);
        assert_eq!(client.line(), "+PONG");
    }
    expect_answers(&proxy, 3.0);
    queues.send(&["MULTI"]);
    assert_eq!(queues.line(), "+OK");
    queues.send(&["SET", "key", "value"]);
    assert_eq!(queues.line(), "+QUEUED");
    pops.send(&["BLPOP", "queue", "0"]);
    listens.send(&["SUBSCRIBE", "news"]);
    assert_eq!(listens.array(), ["subscribe", "news", ":1"]);
    thread::sleep(ms(4500));
    queues.send(&["EXEC"]);
    assert_eq!(queues.array(), ["+OK"]);
    let mut direct = Client::connect(redis.address);
    direct.send(&["RPUSH", "queue", "job"]);
    assert_eq!(direct.line(), ":1");
    direct.send(&["PUBLISH", "news", "hello"]);
    assert_eq!(direct.line(), ":1");
    assert_eq!(pops.array(), ["queue", "job"]);
    assert_eq!(listens.array(), ["message", "news", "hello"]);
    let before = count(&proxy, "answered");
    expect_answers(&proxy, before + 2.0);
    drop((queues, pops, listens));
    assert_eq!(count(&proxy, "missed") + count(&proxy, "misfit"), 0.0);
    proxy.expect_all_closed("finished", 3);
}

/// A service that is found after these exchanges, of which the last one may come again.
fn stops(name: &str, process: &Process, proxy: &Pulsegate, exchanges: &[(&[u8], &[u8])]) {
    let mut client = connect(proxy.address);
    for (request, answer) in exchanges {
        exchange(&mut client, request, answer);
    }
    expect_answers(proxy, 2.0);
    let (request, answer) = exchanges.last().expect("there is one");
    exchange(&mut client, request, answer);
    assert_eq!(count(proxy, "missed"), 0.0, "{name}");
    let _stopped = Stopped::new(process.id());
    expect_found(proxy, &mut client, Instant::now());
}

/// One that takes connections at this address.
fn listening(command: &mut Command, address: SocketAddr) -> Process {
    let mut process = Process::start(command);
    process.wait_until(|_| TcpStream::connect(address).is_ok());
    process
}

pub struct Memcached {
    process: Process,
    pub address: SocketAddr,
}

impl Memcached {
    pub fn start() -> Self {
        let address = free_address();
        let mut memcached = tool("memcached");
        let port = address.port().to_string();
        memcached.args(["-l", "127.0.0.1", "-p", &port, "-U", "0", "-u", "nobody"]);
        let process = listening(&mut memcached, address);
        Self { process, address }
    }
}

pub struct Mosquitto {
    process: Process,
    pub address: SocketAddr,
}

impl Mosquitto {
    pub fn start() -> Self {
        let address = free_address();
        let mut mosquitto = tool("mosquitto");
        mosquitto.args(["-p", &address.port().to_string()]);
        let process = listening(&mut mosquitto, address);
        Self { process, address }
    }
}

fn a_memcached_that_stops_is_found() {
    let service = Memcached::start();
    let proxy = Pulsegate::start(service.address, &profile("memcached"));
    let exchanges: [(&[u8], &[u8]); 2] = [
        (b"set a 0 0 1\r\nx\r\n", b"STORED\r\n"),
        (b"get a\r\n", b"VALUE a 0 1\r\nx\r\nEND\r\n"),
    ];
    stops("memcached", &service.process, &proxy, &exchanges);
}

fn a_broker_that_stops_is_found() {
    let broker = Mosquitto::start();
    let proxy = Pulsegate::start(broker.address, &profile("mqtt"));
    let connect = b"\x10\x0d\0\x04MQTT\x04\x02\0\x3c\0\x01c";
    let exchanges: [(&[u8], &[u8]); 2] = [
        (connect, b"\x20\x02\0\0"),
        // The client's own question.
        (b"\xc0\0", b"\xd0\0"),
    ];
    stops("mosquitto", &broker.process, &proxy, &exchanges);
}

fn a_postgres_backend_that_stops_is_found() {
    let postgres = Postgres::start();
    let proxy = Pulsegate::start(postgres.address, &profile("postgres"));
    let mut session = Session::start(proxy.address);
    let backend = session.ask("select pg_backend_pid()");
    let mut other = Session::start(proxy.address);
    assert_eq!(other.ask("select 1"), "1");
    expect_answers(&proxy, 4.0);
    let stopped = Instant::now();
    let _stopped = Stopped::new(backend.parse().expect("a process"));
    expect_ended(&proxy, stopped);
    assert_eq!(other.ask("select 2"), "2", "the other backend runs");
    other.end();
}

/// An open transaction is asked and stays as it is; a slow query is waited for.
fn psql_sees_nothing_of_heartbeats() {
    let postgres = Postgres::start();
    let proxy = Pulsegate::start(postgres.address, &profile("postgres"));
    let mut session = Session::start(proxy.address);
    session.ask("create table t (v int)");
    session.ask("begin; insert into t values (1)");
    let before = count(&proxy, "answered");
    expect_answers(&proxy, before + 2.0);
    session.ask("rollback");
    assert_eq!(session.ask("select count(*) from t"), "0");
    assert_eq!(session.ask("select 'slept' from pg_sleep(5)"), "slept");
    let before = count(&proxy, "answered");
    expect_answers(&proxy, before + 1.0);
    session.end();
    assert_eq!(count(&proxy, "missed") + count(&proxy, "misfit"), 0.0);
    proxy.expect_all_closed("finished", 1);
}

fn a_mariadb_that_stops_is_found() {
    let database = MariaDb::start();
    let proxy = Pulsegate::start(database.address, &profile("mysql"));
    let mut client = Process::start(mariadb(proxy.address).arg("--force"));
    writeln!(client.input(), "select 6 * 7;").expect("it takes input");
    assert!(eventually(ms(30_000), || client.output().contains("42")));
    expect_answers(&proxy, 2.0);
    let stopped = Instant::now();
    let _stopped = Stopped::new(database.pid());
    expect_ended(&proxy, stopped);
    writeln!(client.input(), "select 'gone';").expect("it takes input");
    let told = eventually(ms(10_000), || client.errors().contains("ERROR 20"));
    assert!(told, "{}{}", client.output(), client.errors());
}

/// The question goes into TLS, and the answer comes out of it, beside what the client says.
fn a_redis_that_stops_is_found_through_tls_on_both_legs() {
    let setup = Setup::new();
    let redis = Redis::start_tls(&setup.server, &setup.ca, "no");
    let more = "  liveness: { heartbeat: { profile: redis, after: 1s, timeout: 1s } }";
    let keys = Keys {
        tls: setup.tls(""),
        upstream_tls: setup.upstream_tls(""),
        more,
    };
    let proxy = setup.start(redis.address, keys);
    let mut cli = tool("redis-cli");
    cli.args(["-p", &proxy.address.port().to_string(), "--tls", "--cacert"])
        .arg(&setup.ca);
    let mut client = Process::start(&mut cli);
    let mut ask = |request: &str, answer: &str| {
        writeln!(client.input(), "{request}").expect("it takes input");
        let told = eventually(ms(10_000), || client.output().ends_with(answer));
        assert!(told, "{}{}", client.output(), client.errors());
    };
    ask("SET a b", "OK\n");
    expect_answers(&proxy, 2.0);
    ask("GET a", "OK\nb\n");
    ask("EVAL \"return string.rep('x', 300000)\" 0", "xxx\n");
    expect_answers(&proxy, 4.0);
    ask("BLPOP queue 3", "\n\n");
    let stopped = Instant::now();
    let _stopped = Stopped::new(redis.pid());
    expect_ended(&proxy, stopped);
    let metrics = proxy.metrics();
    let handshakes = metrics.value("pulsegate_tls_handshakes_total", &[]);
    assert_eq!(handshakes, 2.0);
    writeln!(client.input(), "GET a").expect("it takes input");
    let told = eventually(ms(10_000), || client.errors().contains("rror"));
    assert!(told, "{}{}", client.output(), client.errors());
}

/// A drain ends sessions between two answers: those that are idle in its second half, by and by; and one that is in
/// the middle of a request, or waits for its answer, only behind that.
fn a_drain_ends_sessions_between_two_answers() {
    let redis = Redis::start();
    let flags = [
        &profile("redis")[..],
        &["--drain-timeout", "20s", "--on-end", "close"],
    ]
    .concat();
    let mut proxy = Pulsegate::start(redis.address, &flags);
    let open = |_| {
        let mut stream = connect(proxy.address);
        exchange(&mut stream, "*1\r\n$4\r\nPING\r\n", "+PONG\r\n");
        stream
    };
    let mut idle = [0; 4].map(open);
    let mut waiting = [0; 4].map(open);
    let mut cut = [0; 4].map(open);
    for stream in &mut waiting {
        let request = b"*3\r\n$5\r\nBLPOP\r\n$5\r\nqueue\r\n$1\r\n0\r\n";
        stream.write_all(request).expect("sent");
    }
    for stream in &mut cut {
        stream.write_all(b"*2\r\n$3\r\nGE").expect("sent");
    }
    thread::sleep(ms(500));
    proxy.signal(Signal::TERM);
    let began = Instant::now();
    for stream in &mut idle {
        assert_eq!(stream.read(&mut [0]).expect("no reset"), 0);
    }
    // The turn of most of the others is over, too.
    assert!(began.elapsed() > ms(10_000) && began.elapsed() < ms(20_000));
    drop(idle);
    proxy.expect_active(8);
    for stream in &mut cut {
        exchange(stream, "T\r\n$4\r\nnone\r\n", "$-1\r\n");
    }
    let mut direct = Client::connect(redis.address);
    direct.send(&["RPUSH", "queue", "job", "job", "job", "job"]);
    for stream in &mut waiting {
        let answer = "*2\r\n$5\r\nqueue\r\n$3\r\njob\r\n";
        exchange(stream, "", answer);
    }
    for stream in waiting.iter_mut().chain(&mut cut) {
        assert_eq!(stream.read(&mut [0]).expect("no reset"), 0);
    }
    drop((waiting, cut));
    proxy.wait();
    let log = proxy.log();
    assert_eq!(log.matches(r#"reason="drain""#).count(), 12, "{log}");
}

/// What a service that is not Redis says to questions, and what of it reaches its client.
struct Strange {
    /// To the second one; `TOKEN` is the answer of Redis, which it gives to the others.
    second: &'static str,
    /// Waits before that.
    late: Duration,
    reaches: &'static str,
    /// Answers, failures, misfits.
    counts: [f64; 3],
}

/// It answers each line that begins with `*1`, and a question as a test wants it.
fn strange_service(strange: &Strange) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
    let address = listener.local_addr().expect("bound");
    let (second, late) = (strange.second, strange.late);
    thread::spawn(move || {
        let mut stream = listener.accept().expect("a client").0;
        let mut reader = BufReader::new(stream.try_clone().expect("a handle"));
        let mut questions = 0;
        let mut line = move || {
            let mut line = String::new();
            reader.read_line(&mut line).expect("more");
            line
        };
        loop {
            match line().as_str() {
                "" => return,
                "*1\r\n" => {
                    let _command = [line(), line()];
                    stream.write_all(b"+PONG\r\n").expect("sent");
                }
                _ => {
                    let [_, _, length, token] = [(); 4].map(|()| line());
                    questions += 1;
                    let answer = if questions == 2 {
                        thread::sleep(late);
                        second
                    } else {
                        "TOKEN"
                    };
                    let token = length + &token;
                    let answer = answer.replace("TOKEN", &token);
                    stream.write_all(answer.as_bytes()).expect("sent");
                }
            }
        }
    });
    address
}

/// Late, twice, something else, in the place of an answer and beside it: the client gets all that was not an answer,
/// and its session lives.
fn strange_answers_end_no_session() {
    let all = [
        Strange {
            second: "TOKEN",
            late: ms(1500),
            reaches: "",
            counts: [3.0, 1.0, 0.0],
        },
        Strange {
            second: "TOKENTOKEN",
            late: ms(0),
            reaches: "TOKEN",
            counts: [2.0, 0.0, 0.0],
        },
        Strange {
            second: "$5\r\nother\r\n",
            late: ms(0),
            reaches: "$5\r\nother\r\n",
            counts: [1.0, 0.0, 1.0],
        },
        Strange {
            second: "HTTP/1.1 400 Bad Request\r\n",
            late: ms(0),
            reaches: "HTTP/1.1 400 Bad Request\r\n",
            counts: [1.0, 0.0, 1.0],
        },
    ];
    thread::scope(|scope| {
        for strange in &all {
            scope.spawn(move || expect_lives(strange));
        }
    });
}

fn expect_lives(strange: &Strange) {
    let service = strange_service(strange);
    let flags = [&profile("redis")[..], &["--heartbeat-failures", "3"]].concat();
    let proxy = Pulsegate::start(service, &flags);
    let mut client = connect(proxy.address);
    exchange(&mut client, "*1\r\n$4\r\nPING\r\n", "+PONG\r\n");
    let [answered, missed, misfit] = strange.counts;
    let counts = || ["answered", "missed", "misfit"].map(|what| count(&proxy, what));
    let counted = eventually(ms(20_000), || {
        counts()[0] >= answered && counts()[2] == misfit
    });
    let answers = strange.second;
    assert!(counted, "{answers:?}: {:?} {}", counts(), proxy.log());
    assert_eq!(counts()[1], missed, "{answers:?}");
    thread::sleep(ms(1500));
    // A token is random, of a fixed length.
    let reaches = strange
        .reaches
        .replace("TOKEN", "$16\r\n0123456789abcdef\r\n");
    client.write_all(b"*1\r\n$4\r\nPING\r\n").expect("sent");
    let mut got = vec![0; reaches.len() + 7];
    client.read_exact(&mut got).expect("all of it");
    let got = String::from_utf8(got).expect("text");
    assert!(got.ends_with("+PONG\r\n"), "{got:?}");
    assert!(
        strange.reaches == "TOKEN" || got.starts_with(&reaches),
        "{got:?}"
    );
    assert_eq!(
        proxy
            .log()
            .matches("something else than the answer")
            .count() as f64,
        misfit
    );
    drop(client);
    let ended = eventually(ms(10_000), || closed(&proxy.metrics(), "finished") == 1.0);
    assert!(ended, "{}", proxy.log());
}
