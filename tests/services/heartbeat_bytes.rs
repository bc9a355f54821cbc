//! Clients and services of Debian with heartbeats between them, side by side with a direct connection: what each
//! client says and is told is the same, byte for byte.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener};
use std::process::Command;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::Case;
use crate::heartbeats::{Memcached, Mosquitto, POSTGRES, count, profile};
use crate::mariadb::{MariaDb, SERVER as MARIADB, mariadb};
use crate::postgres::{Postgres, client, psql, query};
use crate::process::{Folder, Process, tool};
use crate::pulsegate::{Pulsegate, connect};
use crate::redis::Redis;
use crate::support::ms;

pub const CASES: &[Case] = &[
    Case::new(
        "redis_cli_with_heartbeats_is_byte_exact",
        &["redis-server", "redis-cli"],
        redis_cli_with_heartbeats_is_byte_exact,
    ),
    Case::new(
        "redis_in_pieces_with_heartbeats_is_byte_exact",
        &["redis-server"],
        redis_in_pieces_with_heartbeats_is_byte_exact,
    ),
    Case::new(
        "psql_and_its_copies_with_heartbeats_are_byte_exact",
        POSTGRES,
        psql_and_its_copies_with_heartbeats_are_byte_exact,
    ),
    Case::new(
        "pgbench_pipelines_with_heartbeats_are_byte_exact",
        &["initdb", "postgres", "psql", "pgbench"],
        pgbench_pipelines_with_heartbeats_are_byte_exact,
    ),
    Case::new(
        "postgres_in_pieces_with_heartbeats_is_byte_exact",
        POSTGRES,
        postgres_in_pieces_with_heartbeats_is_byte_exact,
    ),
    Case::new(
        "mariadb_with_heartbeats_is_byte_exact",
        MARIADB,
        mariadb_with_heartbeats_is_byte_exact,
    ),
    Case::new(
        "memcached_in_pieces_with_heartbeats_is_byte_exact",
        &["memcached"],
        memcached_in_pieces_with_heartbeats_is_byte_exact,
    ),
    Case::new(
        "mosquitto_with_heartbeats_is_byte_exact",
        &["mosquitto", "mosquitto_pub", "mosquitto_sub"],
        mosquitto_with_heartbeats_is_byte_exact,
    ),
];

/// Long enough for a question in each pause.
const PAUSE: Duration = ms(1500);

/// What was said on a connection, and what was heard.
type Bytes = [Vec<u8>; 2];

/// Takes so many connections, passes them on, and keeps their bytes.
fn recorder(to: SocketAddr, connections: usize) -> (SocketAddr, JoinHandle<Vec<Bytes>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
    let address = listener.local_addr().expect("bound");
    let all = thread::spawn(move || {
        let pass = |_| {
            let ends = [listener.accept().expect("a client").0, connect(to)];
            let copy = |from: usize| {
                let [mut from, mut to] = [from, 1 - from].map(|i| ends[i].try_clone().expect("it"));
                thread::spawn(move || {
                    let (mut all, mut buffer) = (Vec::new(), [0; 64 << 10]);
                    while let Ok(n @ 1..) = from.read(&mut buffer) {
                        all.extend_from_slice(&buffer[..n]);
                        if to.write_all(&buffer[..n]).is_err() {
                            break;
                        }
                    }
                    let _gone = to.shutdown(Shutdown::Write);
                    all
                })
            };
            [copy(0), copy(1)]
        };
        let copies: Vec<_> = (0..connections).map(pass).collect();
        let join = |copy: JoinHandle<Vec<u8>>| copy.join().expect("no panic");
        copies.into_iter().map(|both| both.map(join)).collect()
    });
    (address, all)
}

/// Uses a service directly, without a pause between the steps, and then through heartbeats with one. Its output
/// and its bytes must be the same, but for what `strip` takes away.
fn beside(
    service: SocketAddr,
    name: &'static str,
    connections: usize,
    strip: fn(&mut Bytes),
    client: impl Fn(SocketAddr, Duration) -> Vec<u8>,
) {
    let record = |to, pause| {
        let (address, bytes) = recorder(to, connections);
        let output = client(address, pause);
        let mut bytes = bytes.join().expect("no panic");
        bytes.iter_mut().for_each(strip);
        (output, bytes)
    };
    let direct = record(service, ms(50));
    let proxy = Pulsegate::start(service, &profile(name));
    let through = record(proxy.address, PAUSE);
    expect_same(&through.0, &direct.0);
    for (through, direct) in through.1.iter().zip(&direct.1) {
        assert!(!direct[1].is_empty());
        expect_same(&through[0], &direct[0]);
        expect_same(&through[1], &direct[1]);
    }
    let metrics = proxy.expect_all_closed("finished", connections);
    let all = metrics.excerpt("pulsegate_heartbeats");
    assert!(count(&proxy, "answered") >= 2.0, "{all}");
    assert_eq!(
        count(&proxy, "missed") + count(&proxy, "misfit"),
        0.0,
        "{all}"
    );
}

/// They are long: what is shown is where they differ.
#[track_caller]
fn expect_same(through: &[u8], direct: &[u8]) {
    let same = through.iter().zip(direct).take_while(|(a, b)| a == b);
    let at = same.count().saturating_sub(60);
    let rest = |bytes: &[u8]| bytes[at..].iter().take(200).copied().collect::<Vec<_>>();
    let [through, direct] = [through, direct].map(|bytes| (bytes.len(), rest(bytes)));
    let show = |(length, bytes): &(usize, Vec<u8>)| format!("{length}: {}", bytes.escape_ascii());
    assert_eq!(show(&through), show(&direct), "from {at} on");
}

fn nothing(_: &mut Bytes) {}

/// A client that is given one line after another; what it printed.
fn feed(command: &mut Command, lines: &[String], pause: Duration) -> Vec<u8> {
    let mut client = Process::start(command);
    for line in lines {
        writeln!(client.input(), "{line}").expect("it takes input");
        thread::sleep(pause);
    }
    let status = client.wait(ms(30_000));
    assert!(status.success(), "{status}");
    client.output().into_bytes()
}

/// Says one piece after another, of which the last one ends the connection; what was heard.
pub fn say(to: SocketAddr, pieces: &[impl AsRef<[u8]>], pause: Duration) -> Vec<u8> {
    let mut stream = connect(to);
    let mut reader = stream.try_clone().expect("a handle");
    let heard = thread::spawn(move || {
        let mut all = Vec::new();
        reader.read_to_end(&mut all).expect("an end");
        all
    });
    for piece in pieces {
        stream.write_all(piece.as_ref()).expect("sent");
        thread::sleep(pause);
    }
    heard.join().expect("no panic")
}

// --- Redis ------------------------------------------------------------------------------------

/// redis-cli asks for the texts of its help first, whose order is not the same each time.
fn without_help(bytes: &mut Bytes) {
    let first = b"\r\n+OK\r\n+OK\r\n";
    let end = bytes[1].windows(first.len()).position(|w| w == first);
    bytes[1].drain(..end.expect("the first two answers"));
}

fn redis_cli_with_heartbeats_is_byte_exact() {
    let redis = Redis::start();
    let lines = [
        "FLUSHALL",
        "SET a b",
        "MULTI",
        "INCR n",
        "EXEC",
        "BLPOP queue 3",
        "EVAL \"return string.rep('x', 300000)\" 0",
        "CONFIG GET save",
    ]
    .map(str::to_owned);
    beside(redis.address, "redis", 1, without_help, |to, pause| {
        let mut command = tool("redis-cli");
        command.args(["-h", "127.0.0.1", "-p", &to.port().to_string()]);
        feed(&mut command, &lines, pause)
    });
}

/// Requests that are cut in the middle, several at once, and messages that nobody asked for.
fn redis_in_pieces_with_heartbeats_is_byte_exact() {
    let redis = Redis::start();
    let large = [
        &b"*3\r\n$3\r\nSET\r\n$1\r\nl\r\n$200000\r\n"[..],
        &[b'l'; 100_000],
    ]
    .concat();
    let rest = [&[b'l'; 100_000][..], b"\r\n*2\r\n$3\r\nGET\r\n$1\r\nl\r\n"].concat();
    let pieces: [&[u8]; 14] = [
        b"*1\r\n$8\r\nFLUSHALL\r\n*2\r\n$4\r\nINCR\r\n$1\r\nn\r\n*2\r\n$4\r\nIN",
        b"CR\r\n$1\r\nn\r\n",
        b"*1\r\n$5\r\nMULTI\r\n*2\r\n$4\r\nINCR\r\n$1\r\nn\r\n",
        b"*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nEX",
        b"EC\r\n*2\r",
        b"\n$4\r\nINCR\r\n$1\r\nn\r\n",
        &large,
        &rest,
        b"*3\r\n$5\r\nBLPOP\r\n$5\r\nqueue\r\n$1\r\n4\r\n*1\r\n$4\r\nPING\r\n",
        b"*2\r\n$4\r\nINCR\r\n$1\r\nn\r\n",
        b"*2\r\n$9\r\nSUBSCRIBE\r\n$4\r\nnews\r\n",
        b"*2\r\n$4\r\nPING\r\n$3\r\nown\r\n*2\r\n$9\r\nSUBSCRIBE\r\n$4\r\nmore\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        b"*1\r\n$4\r\nQUIT\r\n",
    ];
    beside(redis.address, "redis", 1, nothing, |to, pause| {
        say(to, &pieces, pause)
    });
}

// --- PostgreSQL -------------------------------------------------------------------------------

/// The process number and the key of a backend are its own.
fn without_backend_key(bytes: &mut Bytes) {
    let heard = &mut bytes[1];
    let key = heard.windows(5).position(|w| w == b"K\0\0\0\x0c");
    let key = key.expect("a backend") + 5;
    heard[key..key + 8].fill(0);
}

fn psql_and_its_copies_with_heartbeats_are_byte_exact() {
    let postgres = Postgres::start();
    // psql sends rows by the line where they are as long as its buffer.
    let row = |n: usize| format!("{n}\t{}", "r".repeat(9000));
    let mut lines = vec![
        "create table t (n int, v text);".to_owned(),
        "begin; insert into t values (0, 'zero');".to_owned(),
        "commit; select 'slept' from pg_sleep(2);".to_owned(),
        "copy t from stdin;".to_owned(),
    ];
    lines.extend((1..4).map(row));
    lines.push("\\.".to_owned());
    lines.push("copy (select n, v, pg_sleep(0.7) from t) to stdout;".to_owned());
    lines.push("select count(*), md5(string_agg(v, '' order by n)) from t;".to_owned());
    lines.push("drop table t;".to_owned());
    beside(
        postgres.address,
        "postgres",
        1,
        without_backend_key,
        |to, pause| feed(psql(to).env("PGSSLMODE", "disable"), &lines, pause),
    );
}

/// Prepared statements in pipelines, between which it is idle, in a transaction and out of one.
fn pgbench_pipelines_with_heartbeats_are_byte_exact() {
    let postgres = Postgres::start();
    query(postgres.address, "create table t (n int)");
    let folder = Folder::new();
    beside(
        postgres.address,
        "postgres",
        2,
        without_backend_key,
        |to, pause| {
            query(postgres.address, "truncate t");
            let script = folder.join("script");
            let sleep = format!("\\sleep {} ms\n", pause.as_millis());
            let text = format!(
                "\\set n :client_id + 7\n\\startpipeline\nbegin;\ninsert into t values (:n);\nselect :n;\n\
             \\endpipeline\n{sleep}\\startpipeline\ncommit;\nselect count(*) from t;\n{sleep}\
             select repeat('v', 9000);\n\\endpipeline\n{sleep}"
            );
            std::fs::write(&script, text).expect("written");
            let mut pgbench = client("pgbench", to);
            pgbench.env("PGSSLMODE", "disable");
            pgbench
                .args(["-n", "-M", "prepared", "-t", "2", "-f"])
                .arg(script);
            let report = crate::process::run(&mut pgbench);
            let expected = "number of transactions actually processed: 2/2";
            assert!(report.contains(expected), "{report}");
            query(postgres.address, "select count(*) from t").into_bytes()
        },
    );
}

fn message(tag: &[u8], body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("short").to_be_bytes();
    [tag, &length, body].concat()
}

fn postgres_in_pieces_with_heartbeats_is_byte_exact() {
    let postgres = Postgres::start();
    let start = message(b"", b"\0\x03\0\0user\0postgres\0database\0postgres\0\0");
    let parse = |sql: &str| message(b"P", format!("\0{sql}\0\0\0").as_bytes());
    let run = [
        message(b"B", b"\0\0\0\0\0\0\0\0"),
        message(b"E", b"\0\0\0\0\0"),
    ]
    .concat();
    let [sync, flush] = [b"S", b"H"].map(|tag| message(tag, b""));
    let ask = |sql: &str| message(b"Q", format!("{sql}\0").as_bytes());
    let copied = message(b"d", b"1\n2\n");
    let pieces = [
        start,
        ask("create temp table t (n int)"),
        // Nobody has committed it when the moment comes.
        [
            parse("insert into t values (1)"),
            run.clone(),
            b"P\0\0".to_vec(),
        ]
        .concat(),
        [&parse("select 1 / count(*) from t")[3..], &run, &flush].concat(),
        [parse("select 1 / 0"), run.clone(), flush].concat(),
        [parse("never"), run, sync.clone(), b"Q".to_vec()].concat(),
        [&ask("select count(*) from t")[1..], b"Q\0\0\0"].concat(),
        ask("copy t from stdin")[4..].to_vec(),
        copied[..7].to_vec(),
        [&copied[7..], &message(b"c", b"")].concat(),
        ask("copy t to stdout; select 'two', pg_sleep(2); select 'three'"),
        [sync.clone(), sync].concat(),
        message(b"X", b""),
    ];
    beside(
        postgres.address,
        "postgres",
        1,
        without_backend_key,
        |to, pause| {
            let mut heard = [Vec::new(), say(to, &pieces, pause)];
            without_backend_key(&mut heard);
            heard[1].clone()
        },
    );
}

// --- MariaDB ----------------------------------------------------------------------------------

/// The greeting has a random text, and the login the process number of the client.
fn without_login(bytes: &mut Bytes) {
    for one in bytes {
        let length = usize::from(one[0]) + (usize::from(one[1]) << 8);
        one.drain(..4 + length);
    }
}

fn mariadb_with_heartbeats_is_byte_exact() {
    let database = MariaDb::start();
    let lines = [
        "create database b; use b;",
        "create table t (n int, v text); insert into t values (1, 'one');",
        "prepare p from 'select n, ? from t'; set @v = 'v'; execute p using @v;",
        "start transaction; insert into t values (2, 'two');",
        "rollback; select count(*), sleep(2) from t;",
        "create procedure two() begin select 1; select n from t; end//",
        "call two(); select repeat('x', 300000);",
        "select * from nowhere;",
        "drop database b;",
    ]
    .map(|line| match line.strip_suffix("//") {
        Some(body) => format!("delimiter //\n{body}//\ndelimiter ;"),
        None => line.to_owned(),
    });
    beside(database.address, "mysql", 1, without_login, |to, pause| {
        feed(mariadb(to).arg("--force"), &lines, pause)
    });
}

// --- memcached --------------------------------------------------------------------------------

fn memcached_in_pieces_with_heartbeats_is_byte_exact() {
    let service = Memcached::start();
    let text: [&[u8]; 6] = [
        b"flush_all\r\nset a 0 0 10\r\n0123",
        b"mn\r\nmn\r\nget a\r\nget",
        b" a\r\nset b 0 0 1 noreply\r\n1\r\n",
        b"incr b 1\r\nget none\r\nmg a v\r\n",
        b"get a b\r\n",
        b"quit\r\n",
    ];
    beside(service.address, "memcached", 1, nothing, |to, pause| {
        say(to, &text, pause)
    });
    let binary = |opcode: u8, extras: &[u8], key: &[u8], value: &[u8]| {
        let total = u8::try_from(extras.len() + key.len() + value.len()).expect("short");
        let lengths = [0, key.len(), extras.len()].map(|n| u8::try_from(n).expect("short"));
        let head = [
            &[0x80, opcode],
            &lengths[..],
            &[0, 0, 0, 0, 0, 0, total, 0, 0, 0, 9],
        ]
        .concat();
        [&head[..], &[0; 8], extras, key, value].concat()
    };
    let set = binary(0x01, &[0; 8], b"k", b"a value");
    let get = binary(0x00, b"", b"k", b"");
    let quit = binary(0x07, b"", b"", b"");
    // Before, since each one is counted.
    say(service.address, &[set, quit.clone()], Duration::ZERO);
    // A quiet one is answered only if the key is there.
    let (quiet, noop) = (binary(0x09, b"", b"none", b""), binary(0x0a, b"", b"", b""));
    let pieces = [
        [&get[..], &get[..10]].concat(),
        get[10..].to_vec(),
        quiet,
        [noop, get].concat(),
        quit,
    ];
    beside(service.address, "memcached", 1, nothing, |to, pause| {
        say(to, &pieces, pause)
    });
}

// --- MQTT -------------------------------------------------------------------------------------

/// One that listens and one that publishes, with acknowledgements; then a client in pieces.
fn mosquitto_with_heartbeats_is_byte_exact() {
    let broker = Mosquitto::start();
    let lines = ["one", "two", &"x".repeat(30_000), "four"].map(str::to_owned);
    beside(broker.address, "mqtt", 2, nothing, |to, pause| {
        let port = to.port().to_string();
        let named = |name: &str, id: &str| {
            let mut command = tool(name);
            command.args([
                "-h",
                "127.0.0.1",
                "-p",
                &port,
                "-i",
                id,
                "-t",
                "news",
                "-q",
                "1",
            ]);
            command
        };
        let wanted = lines.len().to_string();
        let (started, subscribed) = mpsc::channel();
        let listens = thread::spawn({
            let mut listens = named("mosquitto_sub", "listens");
            listens.args(["-C", &wanted]);
            move || {
                let mut listens = Process::start(&mut listens);
                started.send(()).expect("somebody waits");
                assert!(listens.wait(ms(60_000)).success());
                listens.output().into_bytes()
            }
        });
        subscribed.recv().expect("it is started");
        thread::sleep(ms(500));
        feed(named("mosquitto_pub", "tells").arg("-l"), &lines, pause);
        listens.join().expect("no panic")
    });
    let large = [&b"\x30\xa6\x9c\x01\0\x04echo"[..], &[b'p'; 20_000]].concat();
    let pieces: [&[u8]; 7] = [
        b"\x10\x0d\0\x04MQTT\x04\x02\0\x3c\0\x01c",
        b"\x82\x09\0\x01\0\x04echo\0",
        &large[..9000],
        &large[9000..],
        b"\xc0\0\xc0",
        b"\0",
        b"\xe0\0",
    ];
    beside(broker.address, "mqtt", 1, nothing, |to, pause| {
        say(to, &pieces, pause)
    });
}
