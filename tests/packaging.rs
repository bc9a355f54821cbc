//! What is shipped beside the binary: Helm chart, Kubernetes manifest, systemd unit, image, documents.
//!
//! The tools come from `.ci/install`. A test that misses one shows as ignored; with `CI` set it fails.

#![allow(
    clippy::disallowed_methods,
    reason = "waits for processes in real time"
)]

mod packaging {
    pub mod deb;
    pub mod docs;
    pub mod files;
    pub mod image;
    pub mod library;
    pub mod licences;
    pub mod manifests;
    pub mod pod;
    pub mod podman;
    pub mod sidecars;
    pub mod tools;
    pub mod values;
    pub mod watching;
    pub mod workflows;
}

#[path = "../examples/manual/pages.rs"]
mod pages;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

use packaging::tools::Case;
use packaging::{
    deb, docs, files, image, library, licences, manifests, pod, sidecars, values, watching,
    workflows,
};

fn trial(case: Case) -> Trial {
    let Some(missing) = case.missing() else {
        return Trial::test(case.name, move || {
            (case.body)();
            Ok(())
        });
    };
    if std::env::var_os("CI").is_some() {
        let why = format!("missing, run .ci/install: {missing}");
        return Trial::test(case.name, || Err(why.into()));
    }
    eprintln!(
        "SKIPPED: {}: missing, run .ci/install: {missing}",
        case.name
    );
    Trial::test(case.name, || Ok(())).with_ignored_flag(true)
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let all = [
        deb::CASES,
        docs::CASES,
        files::CASES,
        image::CASES,
        library::CASES,
        licences::CASES,
        manifests::CASES,
        pod::CASES,
        sidecars::CASES,
        values::CASES,
        watching::CASES,
        workflows::CASES,
    ];
    let trials = all.concat().into_iter().map(trial);
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}
