//! The licences of the crates that are linked in, which want their texts to go along with the binary.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::tools::{Case, read, repo, run, scratch};

pub const CASES: &[Case] = &[
    Case::new(
        "the_licences_of_all_crates_are_shipped",
        &[],
        the_licences_of_all_crates_are_shipped,
    ),
    Case::new(
        "an_alternative_is_taken_once",
        &[],
        an_alternative_is_taken_once,
    ),
];

const SHIPPED: &str = "deploy/THIRD-PARTY-LICENSES";

/// What a release is built for, and the image.
const TARGETS: [&str; 4] = [
    "x86_64-unknown-linux-musl",
    "aarch64-unknown-linux-musl",
    "x86_64-unknown-linux-gnu",
    "aarch64-unknown-linux-gnu",
];

/// What Cargo does not know.
const HEAD: &str = "\
What is linked into pulsegate, and its licences
===============================================

pulsegate itself is under MIT OR Apache-2.0. The crates that it is built of are below, with the texts that they
come with, each text once. Where a crate is under MIT or something else, MIT is taken. Every binary has these
besides:

The Rust standard library and compiler-builtins: MIT OR Apache-2.0, in parts Apache-2.0 WITH LLVM-exception.
  Copyright (c) The Rust Project Contributors, and the LLVM project. The texts are those below.
The binary of the archive and of the Debian package, musl: MIT, the text below.
  Copyright (c) 2005-2020 Rich Felker, et al.
The binary of the image, the GNU C library: LGPL-2.1-or-later, of Debian 12.
  Source: https://sources.debian.org/src/glibc/. The image can be built again with another version of it, by
  deploy/docker/Dockerfile.
";

fn the_licences_of_all_crates_are_shipped() {
    let crates: BTreeMap<_, _> = TARGETS.into_iter().flat_map(linked).collect();
    assert!(crates.len() > 80, "{crates:?}");
    let mut texts: BTreeMap<String, (BTreeSet<String>, String)> = BTreeMap::new();
    for (name, Crate { licence, folder }) in &crates {
        let files = files(folder, licence);
        assert!(!files.is_empty(), "{name} ({licence}) comes without a text");
        for file in files {
            let text = fs::read_to_string(folder.join(&file)).unwrap();
            let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
            let (of, _) = texts.entry(words).or_insert((BTreeSet::new(), text));
            of.insert(format!("{name} ({licence}): {}", file.display()));
        }
    }
    let mut texts: Vec<_> = texts.into_values().collect();
    texts.sort();
    let mut all = HEAD.to_owned();
    let line = "-".repeat(100);
    for (of, text) in texts {
        writeln!(all, "\n{line}").unwrap();
        for user in of {
            writeln!(all, "{user}").unwrap();
        }
        let text = text.lines().map(str::trim_end).collect::<Vec<_>>();
        writeln!(all, "\n{}", text.join("\n").trim_matches('\n')).unwrap();
    }
    let made = scratch("licences", "THIRD-PARTY-LICENSES", &all);
    assert!(all == read(SHIPPED), "cp {} {SHIPPED}", made.display());
}

/// A crate that is linked in.
#[derive(Debug)]
struct Crate {
    licence: String,
    folder: PathBuf,
}

/// By name and version: what is reached by dependencies that are neither of builds nor of tests.
fn linked(target: &str) -> BTreeMap<String, Crate> {
    let mut command = Command::new(env!("CARGO"));
    let words = ["metadata", "--locked", "--format-version=1"];
    command.args(words).args(["--filter-platform", target]);
    let said = run(command.current_dir(repo(""))).unwrap();
    let metadata: Value = serde_json::from_str(&said).unwrap();
    let by_id = |of: &Value| -> BTreeMap<String, Value> {
        let all = of.as_array().unwrap().iter();
        all.map(|one| (one["id"].as_str().unwrap().to_owned(), one.clone()))
            .collect()
    };
    let (packages, nodes) = (
        by_id(&metadata["packages"]),
        by_id(&metadata["resolve"]["nodes"]),
    );
    let root = metadata["resolve"]["root"].as_str().unwrap();
    let (mut found, mut todo) = (BTreeMap::new(), vec![root]);
    while let Some(id) = todo.pop() {
        let package = &packages[id];
        let text = |key: &str| package[key].as_str().unwrap_or_default();
        let known = Crate {
            licence: text("license").to_owned(),
            folder: Path::new(text("manifest_path")).with_file_name(""),
        };
        let name = format!("{} {}", text("name"), text("version"));
        if found.insert(name, known).is_some() {
            continue;
        }
        let is_normal = |of: &&Value| {
            let kinds = of["dep_kinds"].as_array().unwrap();
            kinds.iter().any(|kind| kind["kind"].is_null())
        };
        let needed = nodes[id]["deps"].as_array().unwrap().iter();
        todo.extend(
            needed
                .filter(is_normal)
                .map(|of| of["pkg"].as_str().unwrap()),
        );
    }
    let own = format!("pulsegate {}", env!("CARGO_PKG_VERSION"));
    found.remove(&own).expect("the root");
    found
}

/// The files of a crate that have its licences, of sources in C within it, too.
fn files(folder: &Path, licence: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(below) = todo.pop() {
        for entry in fs::read_dir(folder.join(&below)).unwrap() {
            let entry = entry.unwrap();
            let path = below.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                todo.push(path);
            } else if is_licence(&path) {
                found.push(path);
            }
        }
    }
    found.sort();
    taken(licence, found)
}

fn is_licence(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_string_lossy().to_uppercase();
    let begins = ["LICEN", "UNLICEN", "COPYING", "COPYRIGHT", "NOTICE"];
    let is_text = !name.contains('.') || name.ends_with(".TXT") || name.ends_with(".MD");
    let is_version = name.contains("-2.0");
    begins.iter().any(|word| name.starts_with(word)) && (is_text || is_version)
}

/// Of a crate under "MIT OR …" without the text of Apache-2.0, where MIT has one of its own. The exception of LLVM
/// stays: the standard library has it, too.
fn taken(licence: &str, mut files: Vec<PathBuf>) -> Vec<PathBuf> {
    let upper = |path: &Path| path.to_string_lossy().to_uppercase();
    let licence = licence.replace('/', " OR ");
    let alternatives: Vec<_> = licence.split(" OR ").map(str::trim).collect();
    let may_choose = alternatives.len() > 1 && alternatives.contains(&"MIT");
    let has_mit = files.iter().any(|path| upper(path).ends_with("-MIT"));
    if may_choose && has_mit && !licence.contains("AND") {
        files.retain(|path| !upper(path).contains("APACHE") || upper(path).contains("LLVM"));
    }
    files
}

fn an_alternative_is_taken_once() {
    let both = ["LICENSE-APACHE", "LICENSE-MIT", "NOTICE"].map(PathBuf::from);
    let left = taken("Apache-2.0 OR MIT", both.to_vec());
    assert_eq!(left, ["LICENSE-MIT", "NOTICE"].map(PathBuf::from));
    assert_eq!(taken("MIT/Apache-2.0", both.to_vec()), left);
    for licence in [
        "Apache-2.0 AND MIT",
        "Apache-2.0",
        "(MIT OR Apache-2.0) AND ISC",
    ] {
        assert_eq!(taken(licence, both.to_vec()), both, "{licence}");
    }
    let one = vec![PathBuf::from("LICENSE-APACHE")];
    assert_eq!(taken("MIT OR Apache-2.0", one.clone()), one);
}
