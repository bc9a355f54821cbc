//! `pulsegate kube inject`: manifests in, manifests with a sidecar out. No cluster is asked.

mod inject;
mod text;

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use self::inject::{Sidecar, inject};
use super::{RunArgs, write_out};
use crate::exit::{self, Exit};

pub(super) const ABOUT: &str = "\
Adds pulsegate as a native sidecar (Kubernetes 1.29 and later) to Deployments, StatefulSets, \
DaemonSets, Pods, Jobs and CronJobs, and leads the Services among the manifests to it. Other objects \
pass unchanged. Comments are lost. What was injected before is replaced, so it may be run on its own \
output.

A workload is changed if its Pods have the annotation pulsegate.io/port: \"9000:8080\" (pulsegate \
listens on 9000, the application on 8080), or all are by --port; pulsegate.io/inject: \"false\" leaves \
one alone. Flags of `run` stand after `--`, or in the annotation pulsegate.io/flags:

  pulsegate kube inject -f app.yaml --port 9000:8080 -- --detect-within 10s | kubectl apply -f -

Exit codes: 0 done; 1 a file cannot be read; 2 something cannot be done, and nothing was printed.";

/// `pulsegate kube`.
#[derive(Subcommand)]
pub(super) enum Kube {
    /// Add pulsegate as a sidecar to workloads in manifests
    #[command(after_help = ABOUT)]
    Inject(Inject),
}

/// `pulsegate kube inject`.
#[derive(Args)]
pub(super) struct Inject {
    /// Manifests in YAML, or - for standard input
    #[arg(short, long, value_name = "FILE")]
    filename: PathBuf,
    /// Where pulsegate is to listen, and where the application does, for workloads without an annotation
    #[arg(long, value_name = "PORT:APP")]
    port: Option<String>,
    /// The image of the sidecar
    #[arg(long, default_value = concat!("ghcr.io/pulsegate/pulsegate:", env!("CARGO_PKG_VERSION")))]
    image: String,
    /// Flags of `run` for every sidecar
    #[arg(last = true, value_name = "FLAGS")]
    flags: Vec<String>,
}

/// Flags of a sidecar, read as those of `run` are.
#[derive(Parser)]
#[command(name = "run", disable_help_flag = true)]
struct Flags {
    #[command(flatten)]
    args: RunArgs,
}

pub(super) fn kube(command: &Kube) -> ExitCode {
    let Kube::Inject(args) = command;
    let text = match read(&args.filename) {
        Ok(text) => text,
        Err(error) => {
            exit::complain(&format!("pulsegate: {}: {error}", args.filename.display()));
            return Exit::Failure.into();
        }
    };
    let sidecar = Sidecar {
        image: &args.image,
        port: args.port.as_deref(),
        flags: &args.flags,
    };
    let injected = text::documents(&text)
        .and_then(|documents| inject(documents, &sidecar))
        .and_then(|injected| Ok((text::write(&injected.documents)?, injected.notes)));
    match injected {
        Ok((text, notes)) => {
            notes.iter().for_each(|note| exit::complain(note));
            write_out(&text)
        }
        Err(why) => {
            exit::complain(&format!("pulsegate: {}: {why}", args.filename.display()));
            Exit::Usage.into()
        }
    }
}

fn read(file: &Path) -> io::Result<String> {
    if file != Path::new("-") {
        return fs::read_to_string(file);
    }
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    Ok(text)
}

/// How long a sidecar with these flags of `run` may drain.
fn drain_time(flags: &[String]) -> Result<std::time::Duration, String> {
    let words = ["run".to_owned()];
    let flags = Flags::try_parse_from(words.iter().chain(flags)).map_err(|error| {
        let text = error.to_string();
        text.lines()
            .next()
            .unwrap_or_default()
            .replace("error: ", "")
    })?;
    let config = flags.args.load().map_err(|errors| errors.to_string())?;
    Ok(config.drain.delay + config.drain.timeout)
}
