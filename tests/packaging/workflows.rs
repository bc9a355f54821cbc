//! What of the workflows can be tried without GitHub.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_yaml::Value;

use super::tools::{Case, documents, read, run, scratch};

pub const CASES: &[Case] = &[
    Case::new(
        "each_step_of_a_workflow_is_a_script",
        &["bash"],
        each_step_of_a_workflow_is_a_script,
    ),
    Case::new(
        "a_draft_has_the_changes_of_its_version",
        &["bash"],
        a_draft_has_the_changes_of_its_version,
    ),
];

const RELEASE: &str = ".github/workflows/release.yml";

/// The `run` of each step, by its job.
fn scripts(workflow: &str) -> Vec<(String, String)> {
    let file = documents(&read(workflow)).remove(0);
    let jobs = file["jobs"].as_mapping().unwrap();
    let of = |(job, value): (&Value, &Value)| {
        let job = job.as_str().unwrap().to_owned();
        let steps = value["steps"].as_sequence().unwrap().clone();
        let scripts = steps.into_iter().filter_map(move |step| {
            let script = step["run"].as_str()?.to_owned();
            Some((job.clone(), script))
        });
        scripts.collect::<Vec<_>>()
    };
    jobs.iter().flat_map(of).collect()
}

/// Expressions of GitHub are words.
fn each_step_of_a_workflow_is_a_script() {
    for workflow in [RELEASE, ".github/workflows/ci.yml"] {
        let scripts = scripts(workflow);
        assert!(scripts.len() > 1, "{workflow}");
        for (job, script) in scripts {
            let parts = script.split("${{").enumerate().map(|(at, part)| match at {
                0 => part,
                _ => part.split_once("}}").expect("its end").1,
            });
            let file = scratch("workflows", "step", &parts.collect::<Vec<_>>().join("word"));
            run(Command::new("bash").arg("-n").arg(file))
                .unwrap_or_else(|why| panic!("{workflow}, {job}: {why}\n{script}"));
        }
    }
}

const CHANGES: &str = "\
# Changelog

## [1.10.0] - 2030-01-01

- Later.

## [1.1.0] - 2029-01-01

### Added

- See [a](docs/A.md) and [b](https://example.com/b).

## [1.0.0] - 2028-01-01

- Before.
";

/// And not of one whose number begins so; links lead to the repository as it was.
fn a_draft_has_the_changes_of_its_version() {
    let scripts = scripts(RELEASE);
    let draft = scripts
        .iter()
        .find(|(_, script)| script.contains("gh release create"));
    let (_, script) = draft.expect("a draft is made");
    let folder = scratch("draft", "CHANGELOG.md", CHANGES).with_file_name("");
    let gh = scratch("draft", "gh", "#!/bin/sh\necho \"$@\"\n");
    fs::set_permissions(gh, fs::Permissions::from_mode(0o755)).unwrap();
    let draft = |tag: &str| {
        // As GitHub does.
        let mut command = Command::new("bash");
        command.args(["-e", "-c", script]).current_dir(&folder);
        let path = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}:{path}", folder.display()));
        run(command.env("TAG", tag).env("GITHUB_REPOSITORY", "o/r"))
    };
    let asked = draft("v1.1.0").unwrap();
    assert!(asked.contains("--notes-file notes.md"), "{asked}");
    let notes = fs::read_to_string(folder.join("notes.md")).unwrap();
    let link = "https://github.com/o/r/blob/v1.1.0/docs/A.md";
    let expected = format!("### Added\n\n- See [a]({link}) and [b](https://example.com/b).");
    assert_eq!(notes.trim(), expected);
    draft("v1.2.0").unwrap_err();
}
