//! The rules of the house, read off the source text: who may use whom, what the pure layer may
//! not touch, where `unsafe`, clocks and prints may stand, and how long things may be.
//! `ARCHITECTURE.md` says why. Each rule has a test that proves that it can fail.

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

#[path = "architecture/log.rs"]
mod log;

/// Layers from the bottom. A module may use any module of a lower layer.
const LAYERS: [&[&str]; 6] = [
    &["heartbeat", "liveness", "proxy_protocol", "sys"],
    &[
        "config",
        "exit",
        "host",
        "metrics",
        "net",
        "relay",
        "telemetry",
        "tls",
        "upstream",
        "view",
    ],
    &["scan", "session"],
    &["admin", "lifecycle", "server"],
    &["app", "guard"],
    &["cli", "demo", "main"],
];

/// Uses inside a layer, each with its reason. Everything else is an error.
const LATERAL: [(&str, &str, &str); 14] = [
    ("main", "cli", "the binary is nothing but the entry to it"),
    ("cli", "demo", "a subcommand"),
    ("relay", "net", "bytes are moved over `net::leg`"),
    (
        "telemetry",
        "config",
        "the log's settings, and the upstream as it is printed",
    ),
    (
        "tls",
        "config",
        "the sections that name certificates and keys",
    ),
    ("tls", "metrics", "the words for failures and versions"),
    ("tls", "net", "a layer of `net::leg`"),
    ("upstream", "config", "the address as it is configured"),
    ("upstream", "net", "dials a `net::stream`"),
    (
        "upstream",
        "telemetry",
        "ejections that repeat are summed up",
    ),
    ("upstream", "tls", "how its endpoints are met"),
    ("view", "metrics", "an overview shows what was counted"),
    ("sys", "liveness", "`Time`, a point of the clock"),
    ("heartbeat", "liveness", "`Leg`, whose peer is asked"),
];

/// The pure modules.
const PURE: [&str; 2] = ["heartbeat", "liveness"];

/// What the pure layer may use of the standard library: nothing that has a clock, a thread, a
/// descriptor or a lock behind it.
const PURE_STD: [&str; 10] = [
    "array",
    "borrow",
    "cmp",
    "collections",
    "convert",
    "fmt",
    "iter",
    "mem",
    "num",
    "ops",
];

/// What the pure layer may use of other crates: derives of `strum`, which expand to a `match` and a
/// constant table. They keep the words of a vocabulary in one place.
const PURE_CRATES: [(&str, &[&str]); 1] = [(
    "strum",
    &[
        "Display",
        "EnumString",
        "FromRepr",
        "IntoStaticStr",
        "VariantArray",
        "VariantNames",
    ],
)];

/// Where the time may be read. Everybody else is given it, or sleeps by the runtime's timer.
const CLOCKS: [(&str, &str); 5] = [
    ("sys/clock.rs", "the one clock of the data plane"),
    (
        "metrics/mod.rs",
        "the wall-clock time of the start and of reloads, and whether certificates are good",
    ),
    (
        "admin/client.rs",
        "deadlines of a blocking client in a process of its own",
    ),
    ("cli/probe", "tells a person how long each step took"),
    ("demo", "tells a person what happened when"),
];

/// Where standard output or standard error may be written to directly.
const PRINTS: [(&str, &str); 2] = [
    ("cli", "answers on standard output"),
    ("demo", "tells its story on standard output"),
];

const FUNCTION_LINES: usize = 60;
/// A function that reads better in one piece may be this long.
const FUNCTION_LINES_HARD: usize = 70;
/// How many functions may be longer than `FUNCTION_LINES`.
const LONG_FUNCTIONS: usize = 2;
const FILE_LINES: usize = 600;

/// Documents that the code and the messages refer to.
const DOCUMENTS: &[&str] = &[
    "README.md",
    "ARCHITECTURE.md",
    "docs/CONFIGURATION.md",
    "docs/METRICS.md",
    "docs/LOG.md",
    "docs/ADMIN.md",
    "docs/ADMISSION.md",
    "docs/SINGLE-SESSION.md",
    "docs/UPSTREAMS.md",
    "docs/RELOAD.md",
    "docs/INSTALL.md",
    "docs/KUBERNETES.md",
    "docs/UPGRADE.md",
    "docs/TLS.md",
    "docs/PROXY-PROTOCOL.md",
    "docs/HEARTBEATS.md",
    "docs/SCAN.md",
    "docs/KERNEL-NOTES.md",
    "docs/RUNBOOK.md",
    "docs/SIZING.md",
    "docs/MIGRATING.md",
];

// --- The rules, on the tree ---------------------------------------------------------------

#[test]
fn modules_use_only_what_lies_below_them() {
    none(tree().iter().flat_map(wrong_edges));
}

#[test]
fn every_exception_is_used() {
    let used: BTreeSet<_> = tree().iter().flat_map(edges).collect();
    let unused = LATERAL.iter().filter(|(from, to, _)| {
        let exists = |module: &str| !module_files(module).is_empty();
        exists(from) && exists(to) && !used.contains(&((*from).to_owned(), (*to).to_owned()))
    });
    none(unused.map(|(from, to, _)| format!("{from} -> {to} is allowed and not used")));
}

#[test]
fn the_pure_modules_are_pure() {
    none(tree().iter().flat_map(impure));
}

#[test]
fn unsafe_is_in_sys_and_gives_its_reason() {
    none(tree().iter().flat_map(unfounded_unsafe));
}

#[test]
fn clocks_are_read_in_few_places() {
    none(tree().iter().flat_map(clock_reads));
}

#[test]
fn nothing_is_printed_past_the_log() {
    none(tree().iter().flat_map(prints));
}

#[test]
fn nothing_panics_on_purpose() {
    none(tree().iter().flat_map(panics));
}

#[test]
fn functions_fit_a_screen() {
    let tree = tree();
    none(
        tree.iter()
            .flat_map(|f| long_functions(f, FUNCTION_LINES_HARD)),
    );
    let long: Vec<_> = tree
        .iter()
        .flat_map(|f| long_functions(f, FUNCTION_LINES))
        .collect();
    assert!(
        long.len() <= LONG_FUNCTIONS,
        "too many:\n{}",
        long.join("\n")
    );
}

#[test]
fn files_are_short() {
    none(tree().iter().filter_map(long_file));
}

#[test]
fn the_documents_exist_and_point_at_what_exists() {
    none(
        DOCUMENTS
            .iter()
            .filter(|name| !root().join(name).is_file())
            .map(|name| format!("{name} is missing")),
    );
    none(DOCUMENTS.iter().flat_map(|name| {
        let text = fs::read_to_string(root().join(name)).unwrap_or_default();
        dangling(name, &text)
    }));
}

#[test]
fn the_layer_table_is_the_documented_one() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("readable");
    none(undocumented_layers(&text));
}

// --- The rules ----------------------------------------------------------------------------

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|modules| modules.contains(&module))
}

/// The modules of this crate that a file uses, with its own.
fn edges(file: &File) -> Vec<(String, String)> {
    let own = file.module();
    let used = heads(&file.code, "crate")
        .into_iter()
        .chain(heads(&file.code, "pulsegate"));
    used.filter(|to| *to != own && own != "lib")
        .map(|to| (own.clone(), to))
        .collect()
}

fn wrong_edges(file: &File) -> Vec<String> {
    let own = file.module();
    let mut wrong = Vec::new();
    if own != "lib" && layer(&own).is_none() {
        wrong.push(format!(
            "{}: module `{own}` is in no layer; give it one",
            file.path
        ));
    }
    for (from, to) in edges(file) {
        let lateral = LATERAL.iter().any(|(a, b, _)| (*a, *b) == (&*from, &*to));
        match (layer(&from), layer(&to)) {
            (Some(a), Some(b)) if b < a || lateral => {}
            (_, None) => wrong.push(format!("{}: `crate::{to}` is in no layer", file.path)),
            _ => wrong.push(format!("{}: {from} may not use {to}", file.path)),
        }
    }
    // `super` must not be a way around it.
    let way_out = "super::".repeat(file.depth());
    if word_at(&file.code, &way_out).next().is_some() {
        wrong.push(format!(
            "{}: `{way_out}` leaves the module; write `crate::`",
            file.path
        ));
    }
    wrong
}

fn impure(file: &File) -> Vec<String> {
    if !PURE.contains(&&*file.module()) {
        return Vec::new();
    }
    // The one type of `std::time` that is plain data; the others read a clock.
    let code = file.code.replace("std::time::Duration", "");
    let std = ["std", "core", "alloc"]
        .iter()
        .flat_map(|root| heads(&code, root));
    let foreign = std
        .filter(|head| !PURE_STD.contains(&&**head))
        .map(|head| format!("std::{head}"));
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("readable");
    let derives = |name: &str| {
        let pure = PURE_CRATES.iter().find(|(known, _)| *known == name);
        pure.is_some_and(|(_, names)| {
            let used = heads(&file.code, name);
            !used.is_empty() && used.iter().all(|used| names.contains(&&**used))
        })
    };
    let crates = dependencies(&manifest)
        .into_iter()
        .filter(|name| is_crate_in(&file.code, name) && !derives(name));
    foreign
        .chain(crates)
        .map(|what| format!("{}: {} may not use {what}", file.path, file.module()))
        .collect()
}

/// Whether a name is used as that of a crate, and not of a variable.
fn is_crate_in(code: &str, name: &str) -> bool {
    word_at(code, name).any(|at| {
        let is_imported = code[..at].trim_end().ends_with("use");
        is_imported || code[at + name.len()..].trim_start().starts_with("::")
    })
}

fn unfounded_unsafe(file: &File) -> Vec<String> {
    let lines: Vec<&str> = file.source.lines().collect();
    let mut wrong = Vec::new();
    for word in ["unsafe", "unsafe_code"] {
        for at in word_at(&file.code, word) {
            let line = line_of(&file.code, at);
            let comment = lines[..line - 1].iter().rev().map(|l| l.trim_start());
            let comment: Vec<_> = comment.take_while(|l| l.starts_with("//")).collect();
            let says = |start: &str| comment.iter().any(|l| l.starts_with(start));
            // A function has a contract instead: its own, or that of the trait.
            let contract = file.code[at..].starts_with("unsafe fn")
                && (says("/// # Safety") || in_unsafe_impl(&file.code[..at]));
            let reason = contract || says("// SAFETY:");
            if file.module() != "sys" {
                wrong.push(format!("{}:{line}: `{word}` outside sys", file.path));
            } else if word == "unsafe" && !reason {
                wrong.push(format!("{}:{line}: no `// SAFETY:` above it", file.path));
            }
        }
    }
    wrong
}

/// Whether the last `impl` of this text, which gives its reason itself, is an unsafe one.
fn in_unsafe_impl(before: &str) -> bool {
    let last = before.rfind("impl ");
    last.is_some_and(|at| before[..at].ends_with("unsafe "))
}

fn clock_reads(file: &File) -> Vec<String> {
    let words = [
        "Instant::now",
        "SystemTime::now",
        "clock_gettime",
        "UNIX_EPOCH.elapsed",
    ];
    occurrences(file, &words, &CLOCKS, "reads a clock")
}

fn prints(file: &File) -> Vec<String> {
    let words = ["println!", "print!", "eprintln!", "eprint!", "dbg!"];
    occurrences(file, &words, &PRINTS, "prints past the log")
}

fn panics(file: &File) -> Vec<String> {
    let words = [
        "unwrap()",
        "expect(",
        "panic!",
        "unreachable!",
        "todo!",
        "unimplemented!",
    ];
    let mut code = file.code.clone();
    for lint in [
        "#[expect(clippy::expect_used",
        "#[expect(clippy::unwrap_used",
    ] {
        items(&code, lint)
            .into_iter()
            .for_each(|item| blank(&mut code, item));
    }
    // An attribute `#[expect(...)]` is no call.
    let code = code.replace("[expect(", "[      (");
    let excused = File {
        code,
        ..file.clone()
    };
    occurrences(&excused, &words, &[], "may panic")
}

fn occurrences(file: &File, words: &[&str], allowed: &[(&str, &str)], what: &str) -> Vec<String> {
    if allowed.iter().any(|(place, _)| {
        Path::new(&file.path).starts_with(place) || file.path == format!("{place}.rs")
    }) {
        return Vec::new();
    }
    let found = words
        .iter()
        .flat_map(|word| word_at(&file.code, word).map(move |at| (at, word)));
    found
        .map(|(at, word)| format!("{}:{}: `{word}` {what}", file.path, line_of(&file.code, at)))
        .collect()
}

fn long_functions(file: &File, limit: usize) -> Vec<String> {
    let mut long = Vec::new();
    for at in word_at(&file.code, "fn") {
        let rest = &file.code[at + 2..];
        let name: String = rest
            .trim_start()
            .chars()
            .take_while(|c| is_word(*c))
            .collect();
        let end = at + item_end(&file.code[at..]);
        let lines = file.code[at..end].lines().count();
        // `fn(u8)` is a type.
        if !name.is_empty() && lines > limit {
            long.push(format!(
                "{}:{}: fn {name} has {lines} lines, limit {limit}",
                file.path,
                line_of(&file.code, at)
            ));
        }
    }
    long
}

/// Lines of code: neither blank nor comment, nor of a test.
fn long_file(file: &File) -> Option<String> {
    let lines = file.code.lines().filter(|l| !l.trim().is_empty()).count();
    (lines > FILE_LINES).then(|| format!("{} has {lines} lines, limit {FILE_LINES}", file.path))
}

/// Relative links, and mentions of source files, that lead nowhere.
fn dangling(name: &str, text: &str) -> Vec<String> {
    let home = root().join(name);
    let rests = text.split("](").skip(1);
    let links = rests.filter_map(|rest| rest.split(')').next());
    let links = links.filter(|link| !link.contains("://"));
    let links = links.filter(|link| !leads_somewhere(&home, link));
    let sources = text
        .split('`')
        .filter(|word| word.starts_with("src/") || word.starts_with("tests/"));
    let sources = sources.filter(|path| !root().join(path).exists());
    links
        .chain(sources)
        .map(|to| format!("{name}: {to} does not exist"))
        .collect()
}

/// Whether the target of a link exists, with the heading that it names.
fn leads_somewhere(from: &Path, link: &str) -> bool {
    let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = match file {
        "" => from.to_owned(),
        file => from.parent().unwrap_or(Path::new("")).join(file),
    };
    if anchor.is_empty() {
        return target.exists();
    }
    let text = fs::read_to_string(target).unwrap_or_default();
    let mut headings = text.lines().filter(|line| line.starts_with('#'));
    headings.any(|heading| anchor_of(heading) == anchor)
}

/// What GitHub makes of a heading.
fn anchor_of(heading: &str) -> String {
    let title = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = title
        .chars()
        .filter(|c| c.is_alphanumeric() || " _-".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// The rows `| L1 | `a`, `b` | ... |` of the table against [`LAYERS`].
fn undocumented_layers(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for (n, modules) in LAYERS.iter().enumerate() {
        let start = format!("| L{n} |");
        let row = text
            .lines()
            .find_map(|line| line.strip_prefix(&start))
            .unwrap_or_default();
        let cell = row.split('|').next().unwrap_or_default();
        let listed: BTreeSet<&str> = cell.split('`').skip(1).step_by(2).collect();
        if listed != modules.iter().copied().collect() {
            wrong.push(format!(
                "ARCHITECTURE.md: L{n} lists {listed:?}, the rule is {modules:?}"
            ));
        }
    }
    wrong
}

// --- Reading source -----------------------------------------------------------------------

#[derive(Clone)]
struct File {
    /// Below `src`.
    path: String,
    source: String,
    /// The source with comments, literals and test items blanked; same lines, same offsets.
    code: String,
}

impl File {
    fn new(path: &str, source: &str) -> Self {
        let mut code = without_text(source);
        let tests = items(&code, "#[cfg(test)]");
        tests.into_iter().for_each(|test| blank(&mut code, test));
        let (path, source) = (path.to_owned(), source.to_owned());
        Self { path, source, code }
    }

    /// The top-level module it belongs to.
    fn module(&self) -> String {
        let first = self.path.split('/').next().unwrap_or_default();
        first.trim_end_matches(".rs").to_owned()
    }

    /// How many `super` lead out of its top-level module: to the root of the crate.
    fn depth(&self) -> usize {
        let parts = self.path.split('/').count();
        parts - usize::from(self.path.ends_with("/mod.rs"))
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every source file that is not a test.
fn tree() -> Vec<File> {
    let mut files = Vec::new();
    collect(&root().join("src"), &mut files);
    assert!(files.len() > 10, "the source was not found");
    files
}

fn module_files(module: &str) -> Vec<String> {
    let paths = tree().into_iter().filter(|f| f.module() == module);
    paths.map(|f| f.path).collect()
}

fn collect(folder: &Path, files: &mut Vec<File>) {
    let entries = fs::read_dir(folder).expect("readable");
    let mut paths: Vec<PathBuf> = entries.map(|e| e.expect("readable").path()).collect();
    paths.sort();
    for path in paths {
        let name = path
            .file_stem()
            .and_then(|s| s.to_str())
            .unwrap_or_default();
        if name == "tests" {
            continue;
        }
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let source = fs::read_to_string(&path).expect("readable");
            let below = path.strip_prefix(root().join("src")).expect("below src");
            files.push(File::new(&below.to_string_lossy(), &source));
        }
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Where `word` stands by itself: not as a part of a longer one.
fn word_at<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(word)
        .map(|(at, _)| at)
        .filter(move |at| {
            let before = code[..*at].chars().next_back();
            let after = code[at + word.len()..].chars().next();
            let open = word.ends_with(is_word);
            !(before.is_some_and(is_word) || open && after.is_some_and(is_word))
        })
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

/// The first names of every path that starts with `root::`, groups taken apart:
/// `root::{a, b::{c, d}}` gives `a` and `b`.
fn heads(code: &str, root: &str) -> Vec<String> {
    let mut heads = Vec::new();
    for at in word_at(code, root) {
        let Some(rest) = code[at + root.len()..].trim_start().strip_prefix("::") else {
            continue;
        };
        let Some(group) = rest.trim_start().strip_prefix('{') else {
            heads.push(head(rest));
            continue;
        };
        let mut depth = 0;
        let mut start = 0;
        for (i, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth > 0 => depth -= 1,
                ',' | '}' if depth == 0 => {
                    heads.push(head(&group[start..i]));
                    start = i + 1;
                    if c == '}' {
                        break;
                    }
                }
                _ => {}
            }
        }
    }
    heads.retain(|head| !head.is_empty());
    heads
}

/// The name that a path starts with; a glob is a name that no rule allows.
fn head(path: &str) -> String {
    let path = path.trim_start();
    if path.starts_with('*') {
        return "*".to_owned();
    }
    path.chars().take_while(|c| is_word(*c)).collect()
}

/// Names of the crates under `[dependencies]`, as they are written in code.
fn dependencies(manifest: &str) -> Vec<String> {
    let table = manifest.split("[dependencies]").nth(1).unwrap_or_default();
    let lines = table
        .lines()
        .skip(1)
        .take_while(|line| !line.starts_with('['));
    let names = lines.filter_map(|line| line.split(['=', '.']).next());
    let names = names.map(|name| name.trim().replace('-', "_"));
    names
        .filter(|name| !name.is_empty() && !name.starts_with('#'))
        .collect()
}

/// The items, from the attribute on, that carry an attribute starting with `attribute`.
fn items(code: &str, attribute: &str) -> Vec<Range<usize>> {
    let mut items: Vec<Range<usize>> = Vec::new();
    for (at, _) in code.match_indices(attribute) {
        if items.last().is_none_or(|last| last.end <= at) {
            items.push(at..at + item_end(&code[at..]));
        }
    }
    items
}

/// Where the item or statement at the start of `code` ends: after its `;`, or after its body.
fn item_end(code: &str) -> usize {
    let mut nested = 0;
    let mut braces = 0;
    for (i, c) in code.char_indices() {
        match c {
            '(' | '[' => nested += 1,
            ')' | ']' => nested -= 1,
            '{' => braces += 1,
            '}' => {
                braces -= 1;
                if braces <= 0 && nested <= 0 {
                    return i + 1;
                }
            }
            ';' if braces == 0 && nested == 0 => return i + 1,
            _ => {}
        }
    }
    code.len()
}

fn blank(code: &mut String, range: Range<usize>) {
    let blanked: String = code[range.clone()].bytes().map(blanked).collect();
    code.replace_range(range, &blanked);
}

/// A space for each byte, so that offsets stay, and lines too.
fn blanked(byte: u8) -> char {
    if byte == b'\n' { '\n' } else { ' ' }
}

/// The source with the text of comments and literals blanked. What is left is code.
fn without_text(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    let mut rest = source;
    while !rest.is_empty() {
        let after_word = code.ends_with(is_word);
        let text = text_length(rest, after_word);
        if text > 0 {
            code.extend(rest.bytes().take(text).map(blanked));
        } else {
            let c = rest.chars().next().map_or(0, char::len_utf8);
            code.push_str(&rest[..c]);
        }
        let used = text.max(rest.chars().next().map_or(0, char::len_utf8));
        rest = &rest[used..];
    }
    code
}

/// The length of the comment or literal that `rest` starts with; 0 if it starts with code.
fn text_length(rest: &str, after_word: bool) -> usize {
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return block_comment(rest);
    }
    let prefix = if after_word {
        0
    } else {
        rest.bytes().take_while(|b| b"bcr".contains(b)).count()
    };
    let body = &rest[prefix..];
    let raw = rest[..prefix].contains('r');
    let hashes = if raw {
        body.bytes().take_while(|b| *b == b'#').count()
    } else {
        0
    };
    match body.as_bytes().get(hashes) {
        Some(b'"') if raw => {
            let end = format!("\"{}", "#".repeat(hashes));
            let from = prefix + hashes + 1;
            rest[from..]
                .find(&end)
                .map_or(rest.len(), |at| from + at + end.len())
        }
        Some(b'"') => prefix + quoted(body, b'"'),
        // A lifetime has no closing quote after its first character.
        Some(b'\'') if body[1..].starts_with('\\') || body.chars().nth(2) == Some('\'') => {
            prefix + quoted(body, b'\'')
        }
        _ => 0,
    }
}

/// The length of a literal between quotes, escapes respected.
fn quoted(body: &str, quote: u8) -> usize {
    let mut escaped = false;
    for (i, byte) in body.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b if b == quote => return i + 1,
            _ => {}
        }
    }
    body.len()
}

fn block_comment(rest: &str) -> usize {
    let mut depth = 0;
    let bytes = rest.as_bytes();
    for i in 0..bytes.len().saturating_sub(1) {
        match &bytes[i..i + 2] {
            b"/*" => depth += 1,
            b"*/" => {
                depth -= 1;
                if depth == 0 {
                    return i + 2;
                }
            }
            _ => {}
        }
    }
    rest.len()
}

fn none(problems: impl IntoIterator<Item = String>) {
    let problems: Vec<_> = problems.into_iter().collect();
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

// --- The rules can fail -------------------------------------------------------------------

/// Asserts that the rule finds as many problems as expected in each snippet.
fn finds<T: IntoIterator<Item = String>>(rule: impl Fn(&File) -> T, cases: &[(&str, &str, usize)]) {
    for (path, source, expected) in cases {
        let found: Vec<_> = rule(&File::new(path, source)).into_iter().collect();
        assert_eq!(found.len(), *expected, "{path}: {source}\n{found:?}");
    }
}

#[test]
fn wrong_edges_are_found() {
    finds(
        wrong_edges,
        &[
            ("relay/mod.rs", "use crate::session::Session;", 1),
            (
                "relay/mod.rs",
                "use crate::{liveness, session::{Table, Session}};",
                1,
            ),
            ("relay/mod.rs", "fn f() { crate::metrics::names() }", 1),
            ("net/dial.rs", "use crate::relay::Relay;", 1),
            ("net/dial.rs", "use super::super::session;", 1),
            ("exit.rs", "use super::app;", 1),
            ("relay/mod.rs", "use crate::*;", 1),
            ("gossip.rs", "", 1),
            ("main.rs", "use pulsegate::app;", 0),
            ("cli/mod.rs", "use pulsegate::gossip;", 1),
            (
                "relay/mod.rs",
                "use crate::net::stream; use crate::{liveness::{A, B}, sys};",
                0,
            ),
            (
                "relay/mod.rs",
                "// crate::session\nconst A: &str = \"crate::session\";",
                0,
            ),
            (
                "relay/mod.rs",
                "#[cfg(test)]\nmod tests { use crate::session; }",
                0,
            ),
            (
                "net/dial.rs",
                "use super::options; use crate::net::stream;",
                0,
            ),
        ],
    );
}

#[test]
fn impurity_is_found() {
    finds(
        impure,
        &[
            ("liveness/a.rs", "use std::time::Instant;", 1),
            ("liveness/a.rs", "use std::{fmt, io, net::SocketAddr};", 2),
            ("liveness/a.rs", "fn f() { std::thread::yield_now() }", 1),
            ("liveness/a.rs", "#[derive(serde::Serialize)] struct A;", 1),
            ("liveness/a.rs", "use strum::{Display, VariantArray};", 0),
            (
                "liveness/a.rs",
                "use strum::{Display, IntoDiscriminant};",
                1,
            ),
            (
                "liveness/a.rs",
                "use tokio::time::sleep; use tracing::info;",
                2,
            ),
            ("liveness/a.rs", "use std::fmt; // std::io", 0),
            (
                "liveness/a.rs",
                "#[cfg(test)] mod tests { use std::time::Instant; }",
                0,
            ),
            ("net/a.rs", "use std::io;", 0),
            ("heartbeat/a.rs", "use bytes::Bytes; use tokio as t;", 2),
            ("heartbeat/a.rs", "fn f(bytes: &[u8]) { f(bytes) }", 0),
        ],
    );
}

#[test]
fn unfounded_unsafe_is_found() {
    let founded = "fn f() {\n    // SAFETY: it is\n    // fine.\n    unsafe { g() }\n}";
    finds(
        unfounded_unsafe,
        &[
            ("net/a.rs", founded, 1),
            ("net/a.rs", "#![allow(unsafe_code)]", 1),
            ("sys/a.rs", "// It is fine.\nunsafe { g() }", 1),
            (
                "sys/a.rs",
                "// SAFETY: fine.\n\nlet a = 1;\nunsafe { g() }",
                1,
            ),
            ("sys/a.rs", founded, 0),
            ("sys/a.rs", "unsafe fn f() {}", 1),
            ("sys/a.rs", "impl A { unsafe fn f() {} }", 1),
            ("sys/a.rs", "/// # Safety\n/// None.\nunsafe fn f() {}", 0),
            (
                "sys/a.rs",
                "// SAFETY: fine.\nunsafe impl A for B {\n    unsafe fn f() {}\n}",
                0,
            ),
            ("sys/a.rs", "#![allow(unsafe_code)] // unsafe", 0),
        ],
    );
}

#[test]
fn clock_reads_are_found() {
    finds(
        clock_reads,
        &[
            ("session/mod.rs", "let a = std::time::Instant::now();", 1),
            ("net/dial.rs", "let a = SystemTime::now();", 1),
            ("relay/mod.rs", "clock_gettime(ClockId::Monotonic)", 1),
            ("sys/clock.rs", "clock_gettime(ClockId::Monotonic)", 0),
            ("demo.rs", "Instant::now()", 0),
            ("demo/story.rs", "Instant::now()", 0),
            ("demography.rs", "Instant::now()", 1),
        ],
    );
}

#[test]
fn prints_are_found() {
    finds(
        prints,
        &[
            ("session/mod.rs", "println!(\"\"); eprintln!(\"\");", 2),
            ("session/mod.rs", "// println!\nlet a = \"println!\";", 0),
            ("cli/mod.rs", "println!(\"\")", 0),
        ],
    );
}

#[test]
fn panics_are_found() {
    let excused =
        "#[expect(clippy::expect_used, reason = \"constant\")]\nfn f() { a.expect(\"\") }";
    finds(
        panics,
        &[
            (
                "net/a.rs",
                "fn f() { a.unwrap(); b.expect(\"\"); panic!() }",
                3,
            ),
            (
                "net/a.rs",
                &format!("{excused}\nfn g() {{ a.unwrap() }}"),
                1,
            ),
            ("net/a.rs", excused, 0),
            (
                "net/a.rs",
                "a.unwrap_or(1); a.expect_err(\"\"); a.unwrap_or_default()",
                0,
            ),
            (
                "net/a.rs",
                "#![expect(clippy::disallowed_methods)]\nuse std::io;",
                0,
            ),
            ("net/a.rs", "#[test] #[cfg(test)]\nfn f() { a.unwrap() }", 0),
        ],
    );
}

#[test]
fn long_functions_are_found() {
    let function = |lines| {
        format!(
            "impl A {{\n    fn f(&self) {{\n{}    }}\n}}",
            "        g();\n".repeat(lines)
        )
    };
    let limit = |f: &File| long_functions(f, FUNCTION_LINES);
    finds(
        limit,
        &[
            ("a.rs", &function(FUNCTION_LINES - 1), 1),
            ("a.rs", &function(FUNCTION_LINES - 2), 0),
            (
                "a.rs",
                &format!(
                    "trait A {{ fn f(a: fn(u8) -> [u8; 4]); }}\n{}",
                    "// a\n".repeat(80)
                ),
                0,
            ),
            (
                "a.rs",
                &format!("#[cfg(test)]\nmod t {{ {} }}", function(80)),
                0,
            ),
        ],
    );
}

#[test]
fn long_files_are_found() {
    let code = "f();\n".repeat(FILE_LINES);
    finds(
        long_file,
        &[
            ("a.rs", &format!("{code}f();"), 1),
            ("a.rs", &format!("{code}\n// a\n/* b */"), 0),
            (
                "a.rs",
                &format!("#[cfg(test)]\nmod tests {{\n{code}}}\n"),
                0,
            ),
        ],
    );
}

#[test]
fn dangling_references_are_found() {
    let text = "[a](docs/NOWHERE.md) `src/nowhere.rs` [b](#nowhere) [c](https://a.example) `src/lib.rs` \
        [d](Cargo.toml) [e](docs/TLS.md#what-a-client-meets)";
    assert_eq!(dangling("README.md", text).len(), 3);
}

#[test]
fn undocumented_layers_are_found() {
    assert_eq!(
        undocumented_layers("| L0 | `heartbeat`, `liveness`, `proxy_protocol`, `sys` | x |").len(),
        LAYERS.len() - 1
    );
}

#[test]
fn text_is_told_from_code() {
    for (source, code) in [
        ("a // b", "a     "),
        ("a /* b /* c */ d */ e", "a                   e"),
        (r#"a "b\" // c" d"#, "a            d"),
        (r##"a r#"b " c"# d"##, "a            d"),
        (r"a '\'' b '{' c", "a      b     c"),
        ("&'a str, b'x', 'y'", "&'a str,     ,    "),
        ("for b in bar {}", "for b in bar {}"),
        ("ä \"ä\" a", "ä      a"),
    ] {
        assert_eq!(without_text(source), code, "{source}");
    }
}
