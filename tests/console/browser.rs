//! Chromium without a screen, driven by WebDriver.

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Beside other tests a browser takes its time.
const PATIENCE: Duration = Duration::from_secs(30);

const FLAGS: [&str; 10] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
];

/// A browser with one page.
pub struct Browser {
    driver: Child,
    address: SocketAddr,
    session: String,
    profile: String,
}

impl Browser {
    pub fn start() -> Self {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
        let address = free.expect("a free port");
        let driver = Command::new("chromedriver")
            .arg(format!("--port={}", address.port()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver");
        let profile = std::env::temp_dir().join(format!("pulsegate-browser-{}", driver.id()));
        let profile = profile.display().to_string();
        let start = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(start.elapsed() < PATIENCE, "the driver does not listen");
            sleep(Duration::from_millis(50));
        }
        let mut browser = Self {
            driver,
            address,
            session: String::new(),
            profile,
        };
        let mut flags = FLAGS.map(str::to_owned).to_vec();
        flags.push(format!("--user-data-dir={}", browser.profile));
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": { "args": flags, "binary": "/usr/bin/chromium" },
            "goog:loggingPrefs": { "browser": "ALL" },
        }}});
        let begun = browser.request("POST", "/session", &wanted);
        let id = begun["sessionId"].as_str();
        browser.session = id.unwrap_or_else(|| panic!("{begun}")).to_owned();
        browser
    }

    /// One request to the driver; its value.
    fn request(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if method == "POST" {
            body.to_string()
        } else {
            String::new()
        };
        let mut stream = TcpStream::connect(self.address).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        let mut text = String::new();
        let _ = write!(
            text,
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        );
        stream.write_all(text.as_bytes()).expect("written");
        let mut answer = Vec::new();
        let mut piece = [0; 65536];
        // The driver may leave the connection open behind its answer.
        loop {
            let read = stream.read(&mut piece).expect("an answer");
            answer.extend_from_slice(&piece[..read]);
            if let Some(body) = body_of(&answer, read == 0) {
                let answer: Value = serde_json::from_slice(body).expect("JSON");
                let value = answer["value"].clone();
                assert!(value["error"].is_null(), "{method} {path}: {value}");
                return value;
            }
        }
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        self.request("POST", &format!("/session/{}{path}", self.session), body)
    }

    fn devtools(&self, command: &str, parameters: &Value) -> Value {
        let body = json!({ "cmd": command, "params": parameters });
        self.post("/goog/cdp/execute", &body)
    }

    pub fn open(&self, url: &str) {
        self.post("/url", &json!({ "url": url }));
    }

    pub fn size(&self, width: u32, height: u32) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500 });
        self.devtools("Emulation.setDeviceMetricsOverride", &size);
    }

    /// `dark` or `light`.
    pub fn scheme(&self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.devtools(
            "Emulation.setEmulatedMedia",
            &json!({ "features": features }),
        );
    }

    /// Runs a statement on the page.
    pub fn run(&self, script: &str) {
        self.post("/execute/sync", &json!({ "script": script, "args": [] }));
    }

    /// The value of an expression, as text.
    pub fn value(&self, expression: &str) -> String {
        let script = format!("return String({expression})");
        let value = self.post("/execute/sync", &json!({ "script": script, "args": [] }));
        value.as_str().unwrap_or_default().to_owned()
    }

    /// The text of an element as it is seen.
    pub fn text(&self, id: &str) -> String {
        self.value(&format!("document.getElementById('{id}').innerText"))
    }

    #[track_caller]
    pub fn until(&self, expression: &str) {
        let start = Instant::now();
        while self.value(expression) != "true" {
            let page = self.value("document.body.innerText");
            assert!(start.elapsed() < PATIENCE, "{expression}: {page}");
            sleep(Duration::from_millis(50));
        }
    }

    #[track_caller]
    pub fn until_text(&self, id: &str, part: &str) {
        let part = Value::from(part);
        self.until(&format!(
            "document.getElementById('{id}').innerText.includes({part})"
        ));
    }

    pub fn type_into(&self, selector: &str, text: &str) {
        let script = "const e = document.querySelector(arguments[0]); e.value = arguments[1]; \
            e.dispatchEvent(new Event('input', { bubbles: true }))";
        let args = [selector, text];
        self.post("/execute/sync", &json!({ "script": script, "args": args }));
    }

    /// Presses keys, one after the other, wherever the focus is.
    pub fn keys(&self, keys: &[char]) {
        let each = |key: &char| {
            let press = |kind: &str| json!({ "type": kind, "value": key.to_string() });
            [press("keyDown"), press("keyUp")]
        };
        let actions: Vec<Value> = keys.iter().flat_map(each).collect();
        let source = json!({ "type": "key", "id": "keyboard", "actions": actions });
        self.post("/actions", &json!({ "actions": [source] }));
    }

    /// What the browser wrote to its console, but for what a test has asked for: a refused filter or change.
    pub fn complaints(&self) -> Vec<String> {
        let log = self.post("/se/log", &json!({ "type": "browser" }));
        let lines = log.as_array().cloned().unwrap_or_default();
        let lines = lines
            .iter()
            .filter_map(|line| line["message"].as_str().map(str::to_owned));
        lines
            .filter(|line| !line.contains("status of 400") && !line.contains("status of 401"))
            .collect()
    }

    pub fn picture(&self, file: &Path) {
        let path = format!("/session/{}/screenshot", self.session);
        let encoded = self.request("GET", &path, &Value::Null);
        let picture = decoded(encoded.as_str().expect("a picture"));
        std::fs::write(file, picture).expect("written");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver ends the browser before it answers.
        if let Ok(mut stream) = TcpStream::connect(self.address) {
            let _set = stream.set_read_timeout(Some(Duration::from_secs(5)));
            let _sent = write!(
                stream,
                "DELETE /session/{} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
                self.session, self.address
            );
            let _answered = stream.read(&mut [0; 1024]);
        }
        let _gone = self.driver.kill();
        let _status = self.driver.wait();
        let _removed = std::fs::remove_dir_all(&self.profile);
    }
}

/// The body of an answer that is complete.
fn body_of(answer: &[u8], is_all: bool) -> Option<&[u8]> {
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    let body = &answer[end..];
    match length {
        Some(length) => body.get(..length),
        None => is_all.then_some(body),
    }
}

/// Base64 (RFC 4648), as pictures come.
fn decoded(text: &str) -> Vec<u8> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let digits: Vec<u8> = text.bytes().filter_map(digit).collect();
    let bytes = digits.chunks(4).flat_map(|four| {
        let word = (0..4).fold(0, |word, i| {
            word << 6 | u32::from(four.get(i).copied().unwrap_or(0))
        });
        word.to_be_bytes()[1..four.len()].to_vec()
    });
    bytes.collect()
}
