//! The systemd unit, the Dockerfile, and YAML in general.

use std::fs;
use std::process::Command;

use super::tools::{read, repo, run, scratch, tool};

/// The unit with the binary under test in the place where the package puts it.
fn unit() -> std::path::PathBuf {
    let text = read("deploy/systemd/pulsegate.service");
    assert_eq!(text.matches("/usr/bin/pulsegate ").count(), 2, "{text}");
    let text = text.replace(
        "/usr/bin/pulsegate ",
        &format!("{} ", env!("CARGO_BIN_EXE_pulsegate")),
    );
    scratch("unit", "pulsegate.service", &text)
}

#[test]
fn systemd_takes_the_unit_without_a_warning() {
    let Some(systemd_analyze) = tool("systemd-analyze") else {
        return;
    };
    let command = &mut Command::new(systemd_analyze);
    let output = command
        .args(["verify", "--man=no"])
        .arg(unit())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && !said.contains("pulsegate.service"),
        "{said}"
    );
}

#[test]
fn the_unit_is_hardened() {
    let Some(systemd_analyze) = tool("systemd-analyze") else {
        return;
    };
    // Tenths: an exposure of 1.6.
    let limits = ["security", "--offline=true", "--threshold=16", "--no-pager"];
    run(Command::new(systemd_analyze).args(limits).arg(unit())).unwrap();
    assert!(!read("deploy/systemd/pulsegate.service").contains("\nProcSubset=pid"));
}

/// systemd must not kill what the default `drain.timeout` of 25 s still allows.
#[test]
fn the_unit_outlives_the_default_drain() {
    let text = read("deploy/systemd/pulsegate.service");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("TimeoutStopSec="))
        .unwrap();
    let seconds: u32 = line.strip_suffix('s').unwrap().parse().unwrap();
    assert!(seconds > 25 + 5, "{seconds}");
}

#[test]
fn the_dockerfile_is_clean() {
    let Some(hadolint) = tool("hadolint") else {
        return;
    };
    run(Command::new(hadolint).arg(repo("deploy/docker/Dockerfile"))).unwrap();
}

#[test]
fn the_image_is_small_and_unprivileged() {
    let text = read("deploy/docker/Dockerfile");
    let (_, last_stage) = text
        .split_once("\nFROM scratch\n")
        .expect("the last stage is scratch");
    assert!(!last_stage.contains("\nFROM "), "{last_stage}");
    assert_eq!(
        last_stage
            .lines()
            .filter(|line| line.starts_with("COPY"))
            .count(),
        1
    );
    for line in [
        "USER 65532:65532",
        "STOPSIGNAL SIGTERM",
        r#"ENTRYPOINT ["/pulsegate"]"#,
        r#"  CMD ["/pulsegate", "healthcheck", "--pid", "1"]"#,
    ] {
        assert!(last_stage.lines().any(|l| l == line), "{line}");
    }
    let rust_version = env!("CARGO_PKG_RUST_VERSION");
    assert!(
        text.contains(&format!("ARG RUST_IMAGE=rust:{rust_version}-")),
        "not {rust_version}"
    );
}

/// `.dockerignore` lets through what the manifest names; a target elsewhere would break the build.
#[test]
fn the_build_context_is_complete() {
    let dir = scratch("context", "marker", "")
        .parent()
        .unwrap()
        .join("root");
    fs::remove_dir_all(&dir).ok();
    fs::create_dir_all(&dir).unwrap();
    let ignore = read(".dockerignore");
    let kept: Vec<_> = ignore
        .lines()
        .filter_map(|line| line.strip_prefix('!'))
        .collect();
    for name in kept {
        run(Command::new("cp").arg("-r").arg(repo(name)).arg(&dir)).unwrap();
    }
    let metadata = [
        "metadata",
        "--offline",
        "--locked",
        "--no-deps",
        "--format-version=1",
    ];
    run(Command::new(env!("CARGO")).args(metadata).current_dir(&dir)).unwrap();
    // A workspace of its own, not a member of ours.
    assert!(dir.join("Cargo.lock").is_file());
}

#[test]
fn yaml_is_tidy() {
    let Some(yamllint) = tool("yamllint") else {
        return;
    };
    let paths = ["charts", "deploy", ".github"];
    run(Command::new(yamllint)
        .arg("--strict")
        .args(paths)
        .current_dir(repo("")))
    .unwrap();
}
