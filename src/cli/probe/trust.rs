//! How the certificate of a server is judged. The handshake goes on whatever it is like, so that all that is
//! wrong is seen at once.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConfig, Error};

use super::{Mark, Met, Step};
use crate::config::{Roots, UpstreamTls};
use crate::exit::Exit;
use crate::tls::certificate::{Certificate, Validity};
use crate::tls::{self, HandshakeError, Judge, LoadError, Shown};

/// What TLS is spoken with, and what it has shown.
pub(super) struct Trust {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    seen: Arc<Mutex<Option<Seen>>>,
    otherwise: Otherwise,
}

/// What becomes of a connection whose certificate is not to be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Otherwise {
    End,
    GoOn,
}

/// The certificate of a server.
struct Seen {
    certificate: Option<Certificate>,
    /// The others of its chain.
    chain: Vec<Certificate>,
    verdict: Result<(), Error>,
    now: i64,
}

impl Trust {
    /// # Errors
    /// What cannot be used, and why, one line each.
    pub fn new(
        section: &UpstreamTls,
        name: ServerName<'static>,
        otherwise: Otherwise,
    ) -> Result<Self, LoadError> {
        let judge = match (tls::judge_of(section), otherwise) {
            (Ok(judge), _) => Some(judge),
            // Nobody is trusted.
            (Err(_), Otherwise::GoOn) if section.ca == Roots::System => None,
            (Err(error), _) => return Err(error),
        };
        let seen = Arc::default();
        let config = tls::judged_by(section, witness(judge, &seen))?;
        Ok(Self {
            config: Arc::new(config),
            name,
            seen,
            otherwise,
        })
    }

    pub fn config(&self) -> Arc<ClientConfig> {
        self.config.clone()
    }

    pub fn name(&self) -> ServerName<'static> {
        self.name.clone()
    }

    /// Tells what was seen, and whether a client goes on.
    pub fn tell(&self, tell: &mut impl FnMut(Met)) -> Exit {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(seen) = &*seen else {
            tell(Met::fail(Step::Certificate, "the server has shown none"));
            return Exit::NotTrusted;
        };
        tell(seen.line(self.otherwise));
        seen.certificate
            .iter()
            .for_each(|it| tell(seen.days_left(it)));
        match (&seen.verdict, self.otherwise) {
            (Err(_), Otherwise::End) => Exit::NotTrusted,
            (Ok(()), _) | (_, Otherwise::GoOn) => Exit::Ok,
        }
    }
}

/// Sees what is shown, and lets it pass.
fn witness(
    judge: Option<Arc<dyn ServerCertVerifier>>,
    seen: &Arc<Mutex<Option<Seen>>>,
) -> Arc<dyn ServerCertVerifier> {
    let seen = seen.clone();
    Arc::new(Judge::new(move |shown: Shown<'_>| {
        let Shown {
            certificate,
            chain,
            name,
            now,
        } = shown;
        let verdict = match &judge {
            Some(judge) => judge.verify_server_cert(certificate, chain, name, &[], now),
            None => Err(CertificateError::UnknownIssuer.into()),
        };
        let new = Seen {
            certificate: Certificate::of(certificate),
            chain: chain
                .iter()
                .filter_map(|der| Certificate::of(der))
                .collect(),
            verdict: verdict.map(drop),
            now: now.as_secs().cast_signed(),
        };
        *seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(new);
        Ok(())
    }))
}

impl Seen {
    fn line(&self, otherwise: Otherwise) -> Met {
        let mut text = match &self.certificate {
            Some(certificate) => whole(certificate),
            None => "cannot be read".to_owned(),
        };
        let failure = self.verdict.as_ref().err().map(HandshakeError::from);
        let mark = match (&failure, otherwise) {
            (None, _) => Mark::Ok,
            (Some(_), Otherwise::GoOn) => Mark::Warn,
            (Some(_), Otherwise::End) => Mark::Fail,
        };
        if let Some(error) = &failure {
            let how = match otherwise {
                Otherwise::End => "not to be trusted",
                Otherwise::GoOn => "not to be trusted, accepted by --insecure",
            };
            text += &format!("; {how}: {error}");
        }
        let met = Met::new(Step::Certificate, mark, text)
            .with("trusted", failure.is_none())
            .with("reason", failure.map(|error| error.failure.to_string()));
        match &self.certificate {
            None => met,
            Some(it) => met
                .with("names", it.names.clone())
                .with("issuer", it.issuer.clone())
                .with("not_before", it.not_before.to_string())
                .with("not_after", it.not_after.to_string()),
        }
    }

    fn days_left(&self, certificate: &Certificate) -> Met {
        let end = |it: &&Certificate| it.not_after.seconds;
        let first = self.chain.iter().min_by_key(end);
        // Without its chain nobody trusts it.
        let first = first.filter(|it| end(it) < certificate.not_after.seconds);
        let (it, whose) = match first {
            Some(it) => (it, format!(" ({}, of its chain)", it.owner())),
            None => (certificate, String::new()),
        };
        // Whole days, as in the verdict.
        let days = (it.not_after.seconds - self.now) / 86_400;
        let met = match it.validity(self.now) {
            Validity::Days(days) => Met::ok(Step::DaysLeft, format!("{days}{whose}")),
            Validity::Expired(date) => {
                let text = format!("{days}: expired on {date}{whose}");
                Met::fail(Step::DaysLeft, text)
            }
            Validity::NotYet(date) => {
                let text = format!("{days}: not valid before {date}{whose}");
                Met::fail(Step::DaysLeft, text)
            }
        };
        met.with("days", days)
    }
}

/// With all its names, where it has more than one.
fn whole(certificate: &Certificate) -> String {
    let text = certificate.to_string();
    match certificate.names.split_first() {
        Some((first, others)) if !others.is_empty() => {
            let rest = text.strip_prefix(first.as_str()).unwrap_or(&text);
            certificate.names.join(", ") + rest
        }
        _ => text,
    }
}
