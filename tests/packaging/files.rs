//! The systemd unit, the Dockerfile, and YAML in general.

use std::process::Command;

use super::tools::{Case, read, repo, run, scratch, tool};

pub const CASES: &[Case] = &[
    Case::new(
        "systemd_takes_the_units_without_a_warning",
        &["systemd-analyze"],
        systemd_takes_the_units_without_a_warning,
    ),
    Case::new(
        "the_units_are_hardened",
        &["systemd-analyze"],
        the_units_are_hardened,
    ),
    Case::new(
        "the_unit_outlives_the_default_drain",
        &[],
        the_unit_outlives_the_default_drain,
    ),
    Case::new(
        "the_dockerfile_is_clean",
        &["hadolint"],
        the_dockerfile_is_clean,
    ),
    Case::new("yaml_is_tidy", &["yamllint"], yaml_is_tidy),
];

const UNITS: [&str; 2] = ["pulsegate.service", "pulsegate-guard.service"];

/// A unit with the binary under test in the place where the package puts it.
fn unit(name: &str) -> std::path::PathBuf {
    let text = read(&format!("deploy/systemd/{name}"));
    assert!(text.contains("/usr/bin/pulsegate "), "{text}");
    let text = text.replace(
        "/usr/bin/pulsegate ",
        &format!("{} ", env!("CARGO_BIN_EXE_pulsegate")),
    );
    scratch("unit", name, &text)
}

/// A port of the socket unit, beside the unit that it starts.
fn socket() -> std::path::PathBuf {
    let text = read("deploy/systemd/pulsegate@.socket");
    scratch("unit", "pulsegate@.socket", &text);
    unit(UNITS[0]).with_file_name("pulsegate@443.socket")
}

fn systemd_takes_the_units_without_a_warning() {
    let systemd_analyze = tool("systemd-analyze");
    let [proxy, guard] = UNITS.map(unit);
    let command = &mut Command::new(systemd_analyze);
    let output = command
        .args(["verify", "--man=no"])
        .args([proxy, guard, socket()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && !said.contains("pulsegate"),
        "{said}"
    );
}

/// As hard as the documents say.
fn the_units_are_hardened() {
    let systemd_analyze = tool("systemd-analyze");
    let documents = ["docs/INSTALL.md", "docs/SCAN.md"];
    for (name, document) in UNITS.into_iter().zip(documents) {
        let command = &mut Command::new(&systemd_analyze);
        let analyze = ["security", "--offline=true", "--no-pager"];
        let said = run(command.args(analyze).arg(unit(name))).unwrap();
        let (_, exposure) = said.split_once(&format!("level for {name}: ")).unwrap();
        let exposure = exposure.split(' ').next().unwrap();
        let stated = format!("(`systemd-analyze security`: {exposure})");
        assert!(read(document).contains(&stated), "{document}: {stated}");
    }
    assert!(!read("deploy/systemd/pulsegate.service").contains("\nProcSubset=pid"));
}

/// systemd must not kill what the default `drain.timeout` of 25 s still allows.
fn the_unit_outlives_the_default_drain() {
    let text = read("deploy/systemd/pulsegate.service");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("TimeoutStopSec="))
        .unwrap();
    let seconds: u32 = line.strip_suffix('s').unwrap().parse().unwrap();
    assert!(seconds > 25 + 5, "{seconds}");
}

fn the_dockerfile_is_clean() {
    let hadolint = tool("hadolint");
    run(Command::new(hadolint).arg(repo("deploy/docker/Dockerfile"))).unwrap();
}

fn yaml_is_tidy() {
    let yamllint = tool("yamllint");
    let paths = ["charts", "deploy", ".github"];
    run(Command::new(yamllint)
        .arg("--strict")
        .args(paths)
        .current_dir(repo("")))
    .unwrap();
}
