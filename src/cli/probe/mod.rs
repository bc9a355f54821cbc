//! `pulsegate probe`: what a client meets at an address, one line each.

mod meet;
mod trust;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use rustls::pki_types::ServerName;
use serde_json::{Map, Value, json};
use strum::{Display, IntoStaticStr};

use self::trust::{Otherwise, Trust};
use super::{Output, address, write_out};
use crate::admin::client::Format;
use crate::config::{self, Roots, UpstreamAddress, UpstreamTls};
use crate::exit::{self, Exit};

pub(super) const ABOUT: &str = "\
Each line: ok, warn or fail; what was met; what it is like.
  connect      the address that accepts, and how long that takes
  handshake    version, cipher suite, protocol inside (ALPN), and how long that takes
  certificate  its names, who issued it, until when it is valid; whether a client may trust it
  days_left    until it expires
  first_byte   what the server says first, if it says something before it is asked
Nothing is sent into the connection but TLS. It ends with close_notify and FIN.

Names of other tools are accepted, too: --cacert, --cert (curl), --servername (openssl s_client).

Exit codes:
  0  a client is served
  2  flags are wrong, or a file cannot be used
  5  nobody can be connected to, or the name is unknown
  6  there is no TLS: the handshake failed
  7  the certificate is not to be trusted
  8  the server ends the connection before it says anything";

/// `pulsegate probe`.
#[derive(Args)]
pub(super) struct Probe {
    /// The server
    #[arg(value_name = "HOST:PORT", value_parser = address::parse)]
    server: UpstreamAddress,
    /// Speak TLS
    #[arg(long)]
    tls: bool,
    /// Who may have issued its certificate: those that this host trusts, or a file (PEM)
    #[arg(
        long,
        visible_alias = "cacert",
        value_name = "FILE|system",
        requires = "tls"
    )]
    ca: Option<String>,
    /// The name that the certificate must have; it is also sent (SNI) [default: HOST]
    #[arg(
        long,
        visible_alias = "servername",
        value_name = "NAME",
        requires = "tls"
    )]
    server_name: Option<String>,
    /// The chain to send, where the server asks for one (PEM)
    #[arg(
        long,
        visible_alias = "cert",
        value_name = "FILE",
        requires_all = ["tls", "key"]
    )]
    certificate: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, value_name = "FILE", requires_all = ["tls", "certificate"])]
    key: Option<PathBuf>,
    /// Protocols to offer, the best first: h2,http/1.1
    #[arg(long, value_name = "NAMES", value_delimiter = ',', requires = "tls")]
    alpn: Vec<String>,
    /// Go on whatever the certificate is like, and say so
    #[arg(short = 'k', long, requires = "tls")]
    insecure: bool,
    /// How long each of connect, handshake and first byte may take
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = config::duration)]
    timeout: Duration,
    #[command(flatten)]
    output: Output,
}

/// What is met, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
enum Step {
    Connect,
    Handshake,
    Certificate,
    DaysLeft,
    FirstByte,
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
enum Mark {
    Ok,
    Warn,
    Fail,
}

/// One line.
#[derive(Debug)]
struct Met {
    step: Step,
    mark: Mark,
    text: String,
    /// The same for programs.
    facts: Map<String, Value>,
}

pub(super) fn probe(args: &Probe) -> ExitCode {
    let trust = match args.trust() {
        Ok(trust) => trust,
        Err(why) => {
            exit::complain(&format!("pulsegate: {why}"));
            return Exit::Usage.into();
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            exit::complain(&format!("pulsegate: {error}"));
            return Exit::Failure.into();
        }
    };
    let mut all = Vec::new();
    let exit = runtime.block_on(meet::meet(
        &args.server,
        trust.as_ref(),
        args.timeout,
        &mut |met| match args.output.format() {
            Format::Text => drop(write_out(&met.line())),
            Format::Json => all.push(met.json()),
        },
    ));
    // A name that is looked up is not waited for.
    runtime.shutdown_background();
    if args.output.format() == Format::Json {
        let server = args.server.to_string().into();
        let code = (exit as u8).into();
        let all = all.into_iter();
        let all = all.chain([("server".to_owned(), server), ("exit".to_owned(), code)]);
        let all: Map<String, Value> = all.collect();
        let _ = write_out(&format!("{:#}\n", json!(all)));
    }
    exit.into()
}

impl Probe {
    /// `None` where no TLS is spoken.
    ///
    /// # Errors
    /// Which file or name cannot be used, and why.
    fn trust(&self) -> Result<Option<Trust>, String> {
        if !self.tls {
            return Ok(None);
        }
        let ip = self
            .server
            .literal()
            .map(|address| address.ip().to_string());
        let host = self.server.name().map(ToOwned::to_owned).or(ip);
        let name = self.server_name.clone().or(host).unwrap_or_default();
        let name = ServerName::try_from(name.clone())
            .map_err(|_| format!("--server-name: {name:?} is neither a name nor an IP address"))?;
        let ca = match self.ca.as_deref() {
            None | Some("system") => Roots::System,
            Some(file) => Roots::File(file.into()),
        };
        let section = UpstreamTls {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            alpn: self.alpn.clone(),
            ..UpstreamTls::of(ca)
        };
        let otherwise = match self.insecure {
            true => Otherwise::GoOn,
            false => Otherwise::End,
        };
        let trust = Trust::new(&section, name, otherwise);
        // The keys of the section are the flags.
        trust.map(Some).map_err(|error| format!("--{error}"))
    }
}

impl Met {
    fn new(step: Step, mark: Mark, text: impl Into<String>) -> Self {
        Self {
            step,
            mark,
            text: text.into(),
            facts: Map::new(),
        }
    }

    fn ok(step: Step, text: impl Into<String>) -> Self {
        Self::new(step, Mark::Ok, text)
    }

    fn fail(step: Step, text: impl Into<String>) -> Self {
        Self::new(step, Mark::Fail, text)
    }

    fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.facts.insert(name.to_owned(), value.into());
        self
    }

    fn line(&self) -> String {
        let (mark, step) = (self.mark.to_string(), self.step.to_string());
        format!("{mark:<6}{step:<13}{}\n", self.text)
    }

    fn json(self) -> (String, Value) {
        let mut facts = self.facts;
        facts.insert("status".to_owned(), self.mark.to_string().into());
        facts.insert("text".to_owned(), self.text.into());
        (self.step.to_string(), facts.into())
    }
}
