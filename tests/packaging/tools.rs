//! Finds and runs the programs that the tests need.

use std::env;
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use serde_yaml::Value;

use super::podman;

/// What a process must be allowed, and how that is found out.
type Right = (&'static str, fn() -> bool);

/// A test and what it needs.
#[derive(Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    tools: &'static [&'static str],
    right: Option<Right>,
    pub body: fn(),
}

impl Case {
    pub const fn new(name: &'static str, tools: &'static [&'static str], body: fn()) -> Self {
        Self {
            name,
            tools,
            right: None,
            body,
        }
    }

    /// The same where the process may mount.
    pub const fn that_mounts(mut self) -> Self {
        self.right = Some(("the right to mount", may_mount));
        self
    }

    /// The same where containers run.
    pub const fn that_runs_containers(mut self) -> Self {
        self.right = Some(("containers that run", podman::runs));
        self
    }

    /// What the machine lacks.
    pub fn missing(&self) -> Option<String> {
        let tools = self.tools.iter().filter(|name| find(name).is_none());
        let mut missing: Vec<_> = tools.copied().collect();
        // It may take the tools to find out.
        if missing.is_empty()
            && let Some((what, is_there)) = self.right
            && !is_there()
        {
            missing.push(what);
        }
        (!missing.is_empty()).then(|| missing.join(", "))
    }
}

fn may_mount() -> bool {
    let mut command = Command::new("unshare");
    let command = command.args(["--mount", "mount", "-t", "tmpfs", "none", "/mnt"]);
    command.output().is_ok_and(|output| output.status.success())
}

/// A program that the case names.
pub fn tool(name: &str) -> PathBuf {
    find(name).unwrap_or_else(|| panic!("the case does not say that it needs {name}"))
}

/// A program that `.ci/install` brings, or that the system has.
pub fn find(name: &str) -> Option<PathBuf> {
    let found = search_path().into_iter().map(|dir| dir.join(name));
    found.into_iter().find(|path| path.is_file())
}

/// Where `.ci/install` puts what it brings.
pub fn tools() -> PathBuf {
    env::var_os("PULSEGATE_TOOLS").map_or_else(default_tools, PathBuf::from)
}

/// Where programs are looked for.
pub fn search_path() -> Vec<PathBuf> {
    let tools = tools();
    let mut dirs = vec![tools.join("bin"), tools.join("venv/bin")];
    dirs.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    dirs
}

fn default_tools() -> PathBuf {
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || PathBuf::from(env::var_os("HOME").unwrap_or_default());
    cache
        .unwrap_or_else(|| home().join(".cache"))
        .join("pulsegate-tools")
}

/// A path below the root of the repository.
pub fn repo(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The text of a file below the root of the repository.
pub fn read(path: &str) -> String {
    fs::read_to_string(repo(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Writes a file that only the named test uses.
pub fn scratch(test: &str, name: &str, text: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("packaging")
        .join(test);
    fs::create_dir_all(&dir).unwrap();
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    path
}

/// Standard output, or everything that a failed program said.
pub fn run(command: &mut Command) -> Result<String, String> {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    Err(format!(
        "{}\n{stdout}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    ))
}

/// The lines of a document's block that begins with ` ```sh host: NAME `.
pub fn host_lines(document: &str, name: &str) -> String {
    let text = read(document);
    let mark = format!("```sh host: {name}\n");
    let (_, after) = text
        .split_once(&mark)
        .unwrap_or_else(|| panic!("{document}: no {mark}"));
    let (block, _) = after.split_once("```\n").expect("its end");
    // It may be a part of a list.
    let lines = block.trim_end_matches(' ').lines();
    lines
        .map(|line| line.strip_prefix("   ").unwrap_or(line).to_owned() + "\n")
        .collect()
}

/// The documents of a YAML stream; empty ones are dropped.
pub fn documents(text: &str) -> Vec<Value> {
    serde_yaml::Deserializer::from_str(text)
        .map(|document| Value::deserialize(document).unwrap_or_else(|e| panic!("{e}\n{text}")))
        .filter(|value| !value.is_null())
        .collect()
}

/// An address that nobody listens on.
pub fn free_address() -> SocketAddr {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    free.local_addr().unwrap()
}

/// Flags of `run` for a listener on a free port, and these.
pub fn before(flags: &[&str]) -> Vec<String> {
    let listener = ["--listen", "127.0.0.1:0", "--upstream", "127.0.0.1:1"];
    let all = listener.iter().chain(flags);
    all.map(|flag| (*flag).to_owned()).collect()
}

/// A running pulsegate, killed when it is dropped.
pub struct Running(pub Child);

impl Running {
    pub fn start(flags: &[String]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pulsegate"));
        command.arg("run").args(flags).stdout(Stdio::null());
        Self(command.spawn().unwrap())
    }

    /// Until somebody listens there.
    pub fn wait_for(&self, address: SocketAddr) {
        let up = (0..200).any(|_| {
            thread::sleep(Duration::from_millis(50));
            TcpStream::connect(address).is_ok()
        });
        assert!(up, "nobody listens on {address}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
