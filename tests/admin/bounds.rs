//! What strangers at the port can hold, and what they cannot keep from others.

use super::*;

#[test]
fn bytes_that_are_not_http() {
    let e = Endpoint::start();
    let hello = b"\x16\x03\x01\x00\xf1\x01\x00\x00\xed\x03\x03 some client random \x00\x00\r\n\r\n";
    let h2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let noise: Vec<u8> = (0..4096_u32).map(|i| ((i * 7919) >> 3) as u8).collect();
    for bytes in [
        &hello[..],
        &h2[..],
        &noise,
        b"",
        b"\0",
        b"\r\n\r\n\r\n",
        b"GET\r\n\r\n",
    ] {
        let mut stream = e.connect();
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 400"),
            "{answer}"
        );
    }
    e.get("/livez").expect(200, "ok");
}

#[test]
fn oversize_is_refused() {
    let e = Endpoint::start();
    let long = "x".repeat(64 * 1024);
    Answer(e.raw(format!("GET /{long}").as_bytes())).expect(431, "");
    e.ask_with("GET", "/livez", &format!("X: {long}\r\n"))
        .expect(431, "");
    e.ask_with("GET", "/livez", &"a: b\r\n".repeat(200))
        .expect(431, "");
    for headers in [
        "Content-Length: 1000000\r\n",
        "Transfer-Encoding: chunked\r\n",
    ] {
        e.ask_with("POST", "/drain", headers)
            .expect(413, "no route takes a body");
    }
    assert_eq!(e.fake.drains.load(SeqCst), 0);
    e.get("/livez").expect(200, "ok");
}

#[test]
fn a_slow_header_is_cut() {
    let e = Endpoint::start();
    let mut stream = e.connect();
    let start = Instant::now();
    let mut cut = false;
    for byte in b"GET /livez HTTP/1.1\r\nX: ".iter().chain(&[b'x'; 300]) {
        // Either the write fails after the end, or the end can be read.
        if stream.write_all(&[*byte]).is_err() {
            cut = true;
            break;
        }
        thread::sleep(Duration::from_millis(100));
    }
    assert!(cut, "still open after {:?}", start.elapsed());
    assert!(start.elapsed() > Duration::from_secs(5));
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn idle_connections_do_not_keep_others_out() {
    let e = Endpoint::start();
    let mut kept = e.connect();
    let request = format!("GET /livez HTTP/1.1\r\nHost: {}\r\n\r\n", e.addr);
    let mut chunk = [0; 4096];
    let mut ask = || {
        kept.write_all(request.as_bytes()).expect("written");
        kept.read(&mut chunk).expect("answered")
    };
    assert!(ask() > 0);
    let idle: Vec<TcpStream> = (0..200)
        .map(|i| {
            let mut stream = e.connect();
            if i % 2 == 0 {
                stream
                    .write_all(b"GET /metrics HTTP/1.1\r\n")
                    .expect("written");
            }
            stream
        })
        .collect();
    let start = Instant::now();
    for _ in 0..20 {
        e.get("/metrics").expect(200, "pulsegate_");
    }
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    assert!(ask() > 0, "one that asks outlives those who do not");
    drop(idle);
}

/// All connections of the process together hold this much, not each of them.
#[test]
fn readers_that_do_not_read_keep_nobody_out() {
    let e = Endpoint::start();
    e.fake.sessions.store(20_000, SeqCst);
    let request = format!("GET /connections HTTP/1.1\r\nHost: {}\r\n\r\n", e.addr);
    let readers: Vec<TcpStream> = (0..64)
        .map(|_| {
            let mut stream = e.connect();
            // The other end's window, so that little is under way.
            let socket = socket2::SockRef::from(&stream);
            socket.set_recv_buffer_size(16 << 10).expect("set");
            stream.write_all(request.as_bytes()).expect("written");
            stream
        })
        .collect();
    let start = Instant::now();
    let second = Duration::from_secs(1);
    for _ in 0..20 {
        assert_eq!(
            client::healthcheck(&e.addr.into(), second, Health::Live),
            Ok(())
        );
        assert_eq!(
            client::healthcheck(&e.addr.into(), second, Health::Ready),
            Ok(())
        );
        e.get("/metrics").expect(200, "pulsegate_");
    }
    assert!(start.elapsed() < Duration::from_secs(5));
    // The places are taken: who asks for the same is told to come again.
    let busy = e.get("/connections").expect(503, "try again");
    assert_eq!(busy.header("retry-after"), Some("1"));
    // Who takes nothing is cut, and its place is free again.
    let all = client::connections(&e.addr.into(), &[], Format::Json);
    let all = all.or_else(|_| client::connections(&e.addr.into(), &[], Format::Json));
    let all = all.expect("a place within 20 s");
    assert!(all.ends_with("]}\n"), "whole");
    drop(readers);
}

#[test]
fn many_sessions_come_in_pieces() {
    let e = Endpoint::start();
    e.fake.sessions.store(2500, SeqCst);
    let text = client::connections(&e.addr.into(), &[], Format::Json).expect("whole");
    let list: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let ids = |list: &serde_json::Value| -> Vec<u64> {
        let all = list["connections"].as_array().expect("a list").iter();
        all.map(|c| c["id"].as_u64().expect("a number")).collect()
    };
    let expected: Vec<u64> = (1..=2500).filter(|id| id % 1000 != 0).collect();
    assert_eq!(ids(&list), expected);
    assert_eq!(
        (&list["total"], &list["matched"]),
        (&2500.into(), &2500.into())
    );
    let by_age = [("sort", "age"), ("limit", "300")];
    let text = client::connections(&e.addr.into(), &by_age, Format::Json).expect("whole");
    let list: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let expected: Vec<u64> = (2200..=2500).rev().collect();
    assert_eq!(ids(&list), expected[..300]);
    assert_eq!(
        (&list["total"], &list["matched"]),
        (&2500.into(), &2498.into())
    );
    let table = client::connections(&e.addr.into(), &[], Format::Text).expect("whole");
    assert_eq!(table.lines().count(), 2 + 3 * 2498 + 1);
    assert!(table.ends_with("2498 shown, 2500 matched, 2500 in all\n"));
    assert_eq!(table.matches("LISTENER").count(), 1);
    let wide = client::connections(&e.addr.into(), &[("wide", "true")], Format::Text);
    let table = wide.expect("whole");
    assert_eq!(table.lines().count(), 1 + 2 * 2498 + 1);
    assert_eq!(table.matches("LISTENER").count(), 1);
}

/// The limit of requests is one of the process, and probes are not subject to it.
#[test]
fn requests_of_all_connections_are_limited_together() {
    let e = Endpoint::start();
    e.fake.slow.store(true, SeqCst);
    let request = format!(
        "POST /connections/1/verify HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
        e.addr
    );
    let mut asking: Vec<TcpStream> = (0..40)
        .map(|_| {
            let mut stream = e.connect();
            stream.write_all(request.as_bytes()).expect("written");
            stream
        })
        .collect();
    let second = Duration::from_secs(1);
    assert_eq!(
        client::healthcheck(&e.addr.into(), second, Health::Ready),
        Ok(())
    );
    let answers = asking.iter_mut().map(|stream| {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        Answer(answer).status()
    });
    let answers: Vec<u16> = answers.collect();
    let count = |status| answers.iter().filter(|s| **s == status).count();
    assert_eq!((count(200), count(503)), (32, 8), "{answers:?}");
}

/// Whoever asks all the time, over connection after connection, keeps no newcomer out.
#[test]
fn probes_are_answered_during_a_flood() {
    let e = Endpoint::start();
    e.fake.sessions.store(5_000, SeqCst);
    let over = Arc::new(AtomicBool::new(false));
    let figures = std::iter::repeat_n("/metrics", 40);
    let flood: Vec<_> = ["/connections", "/connections?sort=age", "/", ""]
        .into_iter()
        .chain(figures)
        .map(|path| {
            let (over, addr) = (Arc::clone(&over), e.addr);
            thread::spawn(move || {
                let request = format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\n\r\n");
                let mut held = std::collections::VecDeque::new();
                while !over.load(SeqCst) {
                    if let Ok(mut stream) = TcpStream::connect(addr) {
                        if !path.is_empty() {
                            let _ = stream.write_all(request.as_bytes());
                        }
                        held.push_back(stream);
                    }
                    if held.len() > 100 {
                        held.pop_front();
                    }
                }
            })
        })
        .collect();
    let results: Vec<_> = (0..20)
        .map(|_| client::healthcheck(&e.addr.into(), Duration::from_secs(2), Health::Ready))
        .collect();
    over.store(true, SeqCst);
    for thread in flood {
        thread.join().expect("no panic");
    }
    let failed: Vec<_> = results.iter().filter(|r| r.is_err()).collect();
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn shutdown_ends_idle_connections_and_the_listener() {
    let mut e = Endpoint::start();
    let mut idle = e.connect();
    e.get("/livez").expect(200, "ok");
    let start = Instant::now();
    drop(e.stop.take());
    let mut rest = Vec::new();
    let _ = idle.read_to_end(&mut rest);
    assert!(rest.is_empty());
    assert!(start.elapsed() < Duration::from_secs(5));
    let deadline = Instant::now() + Duration::from_secs(5);
    while TcpStream::connect(e.addr).is_ok() {
        assert!(Instant::now() < deadline, "still listening");
    }
}
