//! The proxies that are compared: found, configured from `peers/`, started, ended.

use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use std::{env, fs, io};

use rustix::process::{Pid, Signal};
use tokio::signal::unix::{SignalKind, signal};

/// Everything a template may name.
pub struct Place {
    pub backend: SocketAddr,
    pub directory: PathBuf,
    pub descriptors: u64,
    pub threads: usize,
}

/// A proxy, or none.
pub struct Target {
    pub name: String,
    pub address: SocketAddr,
    /// Where it terminates TLS.
    pub tls: SocketAddr,
    command: Option<Vec<String>>,
    child: Option<Child>,
}

/// Names of all there are, in the order of the table.
pub const NAMES: &str = "direct,pulsegate,haproxy,haproxy-splice,haproxy-threads,nginx,envoy";

impl Target {
    /// Prepares a target; why it cannot be had is an error.
    pub fn new(name: &str, number: u16, place: &Place) -> Result<Self, String> {
        let address = SocketAddr::from(([127, 0, 0, 1], 20_000 + number));
        let mut target = Self {
            name: name.to_owned(),
            address: if name == "direct" {
                place.backend
            } else {
                address
            },
            tls: SocketAddr::new(address.ip(), address.port() + 200),
            command: None,
            child: None,
        };
        if name != "direct" {
            target.command = Some(target.configure(place)?);
        }
        Ok(target)
    }

    /// Whether it counts as a peer.
    pub fn is_peer(&self) -> bool {
        !matches!(self.name.as_str(), "direct" | "pulsegate" | "other")
    }

    fn configure(&self, place: &Place) -> Result<Vec<String>, String> {
        let threads = |n: usize| ("@THREADS@", n.to_string());
        let splice = |on: bool| ("@SPLICE@", if on { SPLICE } else { "" }.to_owned());
        let (program, file, more) = match self.name.as_str() {
            "pulsegate" => (
                env!("CARGO_BIN_EXE_pulsegate").into(),
                "pulsegate.yaml",
                vec![],
            ),
            // Another build of it, for a comparison within one run.
            "other" => (find("other")?, "pulsegate.yaml", vec![]),
            "haproxy" => (
                find("haproxy")?,
                "haproxy.cfg",
                vec![threads(1), splice(false)],
            ),
            "haproxy-splice" => (
                find("haproxy")?,
                "haproxy.cfg",
                vec![threads(1), splice(true)],
            ),
            "haproxy-threads" => {
                let more = vec![threads(place.threads), splice(false)];
                (find("haproxy")?, "haproxy.cfg", more)
            }
            "nginx" => {
                let more = vec![threads(place.threads), ("@MODULE@", stream_module())];
                (find("nginx")?, "nginx.conf", more)
            }
            "envoy" => (find("envoy")?, "envoy.yaml", vec![]),
            _ => return Err("no such target".to_owned()),
        };
        let config = self
            .fill_in(file, &more, place)
            .map_err(|e| e.to_string())?;
        let threads = place.threads.to_string();
        let flags: Vec<&str> = match file {
            "pulsegate.yaml" => vec!["run", "--config", &config],
            "haproxy.cfg" => vec!["-db", "-f", &config],
            "nginx.conf" => vec!["-c", &config],
            _ => vec![
                "-c",
                &config,
                "-l",
                "error",
                "--disable-hot-restart",
                "--concurrency",
                &threads,
            ],
        };
        let flags = flags.into_iter().map(str::to_owned);
        Ok([program].into_iter().chain(flags).collect())
    }

    /// Writes the configuration file; returns its path.
    fn fill_in(&self, file: &str, more: &[(&str, String)], place: &Place) -> io::Result<String> {
        let templates = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/compare/peers");
        let mut text = fs::read_to_string(templates.join(file))?;
        let admin = SocketAddr::new(self.address.ip(), self.address.port() + 100);
        let common = [
            ("@LISTEN@", self.address.to_string()),
            ("@HOST@", self.address.ip().to_string()),
            ("@PORT@", self.address.port().to_string()),
            ("@BACKEND@", place.backend.to_string()),
            ("@BACKEND_HOST@", place.backend.ip().to_string()),
            ("@BACKEND_PORT@", place.backend.port().to_string()),
            ("@TLS@", self.tls.to_string()),
            ("@TLS_PORT@", self.tls.port().to_string()),
            ("@ADMIN@", admin.to_string()),
            ("@DIR@", place.directory.display().to_string()),
            ("@SESSIONS@", (place.descriptors / 2 - 300).to_string()),
            ("@DESCRIPTORS@", place.descriptors.to_string()),
        ];
        for (word, value) in common.iter().chain(more) {
            text = text.replace(word, value);
        }
        let path = place.directory.join(format!("{}-{file}", self.name));
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    }

    /// Starts it and waits until it accepts; nothing to do if it runs.
    pub fn start(&mut self) -> io::Result<()> {
        let Some(command) = self.command.as_ref().filter(|_| self.child.is_none()) else {
            return Ok(());
        };
        let child = Command::new(&command[0])
            .args(&command[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            // A group of its own, so that its workers can be ended with it.
            .process_group(0)
            .spawn()?;
        started().push(Pid::from_child(&child));
        self.child = Some(child);
        let deadline = Instant::now() + Duration::from_secs(15);
        while TcpStream::connect(self.address).is_err() {
            if Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// The process; none for `direct`.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Ends it and everything that it started.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        let group = Pid::from_child(&child);
        let _ = rustix::process::kill_process_group(group, Signal::TERM);
        let deadline = Instant::now() + Duration::from_secs(2);
        while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
        started().retain(|pid| *pid != group);
        let _ = child.wait();
    }
}

/// The process groups that run.
static STARTED: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

fn started() -> MutexGuard<'static, Vec<Pid>> {
    STARTED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes what was started along when this process is told to end.
pub fn end_with_this_process(directory: PathBuf) {
    thread::spawn(move || {
        crate::backend::runtime().block_on(async {
            let asked = |kind| signal(kind).expect("a signal handler");
            let (mut interrupt, mut terminate) = (
                asked(SignalKind::interrupt()),
                asked(SignalKind::terminate()),
            );
            tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} }
        });
        for group in started().iter() {
            let _ = rustix::process::kill_process_group(*group, Signal::KILL);
        }
        let _ = fs::remove_dir_all(directory);
        std::process::exit(130);
    });
}

impl Drop for Target {
    fn drop(&mut self) {
        self.stop();
    }
}

const SPLICE: &str = "option splice-request\n    option splice-response";

/// A program: by the environment variable of its name in capitals, else on the path.
fn find(name: &str) -> Result<String, String> {
    if let Ok(path) = env::var(name.to_uppercase()) {
        return Ok(path);
    }
    let path = env::var("PATH").unwrap_or_default();
    let folders = path.split(':').chain(["/usr/sbin", "/usr/local/sbin"]);
    let mut found = folders
        .map(|folder| Path::new(folder).join(name))
        .filter(|p| p.is_file());
    let found = found.next().ok_or("not installed")?;
    Ok(found.display().to_string())
}

fn stream_module() -> String {
    let path = env::var("NGINX_STREAM_MODULE")
        .unwrap_or_else(|_| "/usr/lib/nginx/modules/ngx_stream_module.so".to_owned());
    // Where it is compiled in there is nothing to load.
    if Path::new(&path).is_file() {
        format!("load_module {path};")
    } else {
        String::new()
    }
}
