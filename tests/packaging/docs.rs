//! The shell lines of the documents for operators. CONTRIBUTING.md has the convention.
//!
//! The blocks of a document are one script, in a network of its own and in a folder that has the
//! repository's `charts`, `config` and `deploy`. `pulsegate` is the binary under test.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::tools::{Case, find, read, repo, run, scratch, search_path};

pub const CASES: &[Case] = &[
    Case::new(
        "a_shell_block_is_run_or_says_why_not",
        &[],
        a_shell_block_is_run_or_says_why_not,
    ),
    Case::new(
        "the_shell_lines_of_the_documents_work",
        &[
            "curl",
            "ip",
            "nft",
            "openssl",
            "redis-cli",
            "redis-server",
            "timeout",
            "unshare",
        ],
        the_shell_lines_of_the_documents_work,
    )
    .that_mounts(),
    Case::new(
        "the_readme_leads_to_every_document",
        &[],
        the_readme_leads_to_every_document,
    ),
    Case::new(
        "keys_that_documents_compare_exist",
        &[],
        keys_that_documents_compare_exist,
    ),
    Case::new(
        "the_changelog_begins_with_this_version",
        &[],
        the_changelog_begins_with_this_version,
    ),
];

/// What stands in a document without being set up there.
const BEFORE: &[(&str, &str)] = &[(
    "README.md",
    "redis-server --save '' >/dev/null &\nsleep 1\n",
)];

/// Until the proxy of a background block answers.
const AWAIT: &str = "tries=0\nuntil pulsegate healthcheck >/dev/null 2>&1; do\n  \
    tries=$((tries + 1)); [ $tries -lt 100 ]; sleep 0.1\ndone\n";

/// What a test does with a block.
#[derive(Debug, PartialEq, Eq)]
enum Use {
    Run,
    /// Goes on while the next blocks run.
    Background,
    /// Needs a host with systemd: `deb.rs` runs it under this name.
    Host(String),
    NotRun,
}

#[derive(Debug)]
struct Block {
    line: usize,
    purpose: Use,
    script: String,
}

/// The blocks of a document in `sh` or `console`, or what is wrong with one.
fn blocks(document: &str, text: &str) -> Result<Vec<Block>, String> {
    let mut found = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((at, line)) = lines.next() {
        let Some(info) = line.trim_start().strip_prefix("```") else {
            continue;
        };
        let body = lines
            .by_ref()
            .map(|(_, line)| line.trim_start_matches("   "));
        let body: Vec<&str> = body.take_while(|line| *line != "```").collect();
        let (language, word) = info.split_once(' ').unwrap_or((info, ""));
        let script = match language {
            "sh" => body.join("\n") + "\n",
            "console" => commands(&body),
            "bash" | "shell" => return Err(format!("{document}:{}: write sh", at + 1)),
            _ => continue,
        };
        let reason = word.strip_prefix("not-run: ").unwrap_or_default();
        let purpose = match word {
            "" => Use::Run,
            "background" => Use::Background,
            _ if reason.len() > 5 => Use::NotRun,
            _ if word.starts_with("host: ") => Use::Host(word["host: ".len()..].to_owned()),
            _ => return Err(format!("{document}:{}: `{info}` says no reason", at + 1)),
        };
        found.push(Block {
            line: at + 1,
            purpose,
            script,
        });
    }
    Ok(found)
}

/// What is typed in a transcript.
fn commands(transcript: &[&str]) -> String {
    let typed = transcript.iter().filter_map(|line| line.strip_prefix("$ "));
    typed.map(|command| format!("{command}\n")).collect()
}

/// The documents for operators.
fn documents() -> Vec<String> {
    let names = |folder: &str| {
        let listed = fs::read_dir(repo(folder)).unwrap();
        let names = listed.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect::<Vec<_>>()
    };
    let pages = names("docs")
        .into_iter()
        .filter(|name| name.ends_with(".md"));
    let pages = pages.map(|name| format!("docs/{name}"));
    let charts = names("charts")
        .into_iter()
        .map(|name| format!("charts/{name}/README.md"));
    let charts = charts.filter(|name| repo(name).is_file());
    let mut all: Vec<_> = pages
        .chain(charts)
        .chain(["README.md".to_owned()])
        .collect();
    all.sort();
    all
}

fn a_shell_block_is_run_or_says_why_not() {
    let all = documents();
    let found = all.iter().map(|document| blocks(document, &read(document)));
    let wrong: Vec<_> = found.filter_map(Result::err).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let host = read("tests/packaging/deb.rs");
    for document in &all {
        for block in blocks(document, &read(document)).unwrap() {
            if let Use::Host(name) = block.purpose {
                let call = format!("(\"{document}\", \"{name}\")");
                assert!(host.contains(&call), "{document}: nobody runs {name}");
            }
        }
    }
    for refused in ["```sh not-run:\n```", "```sh later\n```", "```bash\n```"] {
        assert!(blocks("example", refused).is_err(), "{refused}");
    }
    let read = blocks("example", "```console\n$ a\nb\n```\n```sh\nc\n```\n").unwrap();
    assert_eq!([&*read[0].script, &*read[1].script], ["a\n", "c\n"]);
}

fn the_shell_lines_of_the_documents_work() {
    let mut failed = Vec::new();
    for document in documents() {
        let mut blocks = blocks(&document, &read(&document)).unwrap();
        blocks.retain(|block| matches!(block.purpose, Use::Run | Use::Background));
        if !blocks.is_empty()
            && let Err(said) = try_out(&document, &blocks)
        {
            failed.push(format!("{document}: {said}"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

fn the_readme_leads_to_every_document() {
    let readme = read("README.md");
    let (_, map) = readme.split_once("\n## All documents\n").unwrap();
    let pages = documents();
    let pages = pages.iter().filter(|page| page.starts_with("docs/"));
    let missing: Vec<_> = pages
        .filter(|page| !map.contains(&format!("({page})")))
        .collect();
    assert!(missing.is_empty(), "not in its last table: {missing:?}");
}

/// Keys in backquotes that begin with `…`, the place of a listener, or with `listeners[]`. A test of the
/// configuration holds its reference to the keys that are read.
fn keys_that_documents_compare_exist() {
    let reference = read("config/pulsegate.yaml");
    let lines = reference.lines().filter_map(|line| line.split(':').next());
    let keys: BTreeSet<_> = lines
        .map(|key| key.trim_start_matches([' ', '#', '-']))
        .collect();
    let mut compared = 0;
    for document in ["README.md", "docs/MIGRATING.md"] {
        let text = read(document);
        let quoted = text.split('`').skip(1).step_by(2);
        let paths =
            quoted.filter_map(|word| word.strip_prefix('…').or(word.strip_prefix("listeners[]")));
        for path in paths {
            let key = path.split(':').next().unwrap();
            let mut parts = key.split('.').map(|part| part.trim_end_matches("[]"));
            let unknown = parts.find(|part| !part.is_empty() && !keys.contains(part));
            assert_eq!(unknown, None, "{document}: `{path}`");
            compared += 1;
        }
    }
    assert!(compared > 80, "{compared}");
}

/// The release workflow wants the tag to be the version of the binary, and takes the text from there.
fn the_changelog_begins_with_this_version() {
    let text = read("CHANGELOG.md");
    let first = text.lines().find_map(|line| line.strip_prefix("## ["));
    let (version, date) = first.unwrap().split_once("] - ").unwrap();
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
    let dated = date.len() == 10 && date.starts_with("20");
    assert!(dated || date == "Unreleased", "{date}");
}

fn try_out(document: &str, blocks: &[Block]) -> Result<String, String> {
    let script = scratch(&folder(document), "script", &script(document, blocks));
    let dir = script.parent().unwrap();
    let work = dir.join("work");
    let _ = fs::remove_dir_all(&work);
    fs::create_dir_all(&work).unwrap();
    for shown in ["charts", "config", "deploy"] {
        symlink(repo(shown), work.join(shown)).unwrap();
    }
    run(Command::new("timeout")
        .args(["120", "unshare", "-Urnpf", "--mount-proc", "--kill-child"])
        .arg("sh")
        .args(["-eux", "../script"])
        .env("PATH", path(&dir.join("bin")))
        .current_dir(&work))
}

fn folder(document: &str) -> String {
    format!("docs/{}", document.replace(['/', '.'], "-"))
}

fn script(document: &str, blocks: &[Block]) -> String {
    let before = BEFORE.iter().find(|(of, _)| *of == document);
    let mut script = String::from("ip link set lo up\n");
    script += before.map_or("", |(_, lines)| lines);
    for block in blocks {
        script += &format!("# {document}:{}\n", block.line);
        script += &match block.purpose {
            Use::Background => format!("{{\n{}}} &\n{AWAIT}", block.script),
            _ => block.script.clone(),
        };
    }
    script
}

/// The search path of a script: what an operator calls by these names, then the tools.
fn path(bin: &Path) -> std::ffi::OsString {
    let _ = fs::remove_dir_all(bin);
    fs::create_dir_all(bin).unwrap();
    let pulsegate = PathBuf::from(env!("CARGO_BIN_EXE_pulsegate"));
    let named = [("pulsegate", Some(pulsegate)), ("helm", find("helm3"))];
    for (name, program) in named {
        program.inspect(|program| symlink(program, bin.join(name)).unwrap());
    }
    env::join_paths([bin.to_owned()].into_iter().chain(search_path())).unwrap()
}
