//! Finds and runs the programs that the tests need.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use serde_yaml::Value;

/// A program that `.ci/install` brings, or that the system has. `None`: skip the test.
pub fn tool(name: &str) -> Option<PathBuf> {
    let found = search_path()
        .into_iter()
        .map(|dir| dir.join(name))
        .find(|path| path.is_file());
    if found.is_none() {
        assert!(
            env::var_os("CI").is_none(),
            "{name} is missing: run .ci/install"
        );
        eprintln!("SKIPPED: {name} is missing: run .ci/install");
    }
    found
}

fn search_path() -> Vec<PathBuf> {
    let tools = env::var_os("PULSEGATE_TOOLS").map_or_else(default_tools, PathBuf::from);
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

/// The documents of a YAML stream; empty ones are dropped.
pub fn documents(text: &str) -> Vec<Value> {
    serde_yaml::Deserializer::from_str(text)
        .map(|document| Value::deserialize(document).unwrap_or_else(|e| panic!("{e}\n{text}")))
        .filter(|value| !value.is_null())
        .collect()
}
