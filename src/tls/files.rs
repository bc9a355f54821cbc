//! Certificates and keys out of PEM files, and what is wrong with those that cannot be used.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::certificate::Certificate;

/// No file is larger; the bundle of all public authorities has a quarter of it.
const MOST_BYTES: u64 = 1 << 20;

/// Everything that is wrong with the files of a section, one line each.
#[derive(Debug)]
pub struct LoadError(Vec<Problem>);

impl LoadError {
    /// The lines, where the section is at this place: `listeners[orders].tls`.
    pub fn lines(&self, section: &str) -> impl Iterator<Item = String> {
        let line = move |problem: &Problem| format!("{section}.{problem}");
        self.0.iter().map(line)
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for LoadError {}

impl From<Problem> for LoadError {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

/// One thing that is wrong.
#[derive(Debug)]
pub(super) struct Problem {
    /// Below the section: `certificates[0].key`.
    key: String,
    /// `None`: what this host trusts.
    file: Option<PathBuf>,
    why: Why,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, file, why } = self;
        match file {
            Some(file) => write!(f, "{key}: {}: {why}", file.display()),
            None => write!(f, "{key}: {why}"),
        }
    }
}

/// Why a file is of no use, and what to do.
#[derive(Debug, thiserror::Error)]
pub(super) enum Why {
    #[error("cannot be read: {0}; the user that pulsegate runs as must be allowed to")]
    Forbidden(io::Error),
    #[error("cannot be read: {0}")]
    Unreadable(io::Error),
    #[error("is not a regular file")]
    NotAFile,
    #[error("is larger than {} KiB", MOST_BYTES >> 10)]
    TooLarge,
    #[error("has no {0} in PEM (-----BEGIN {0}-----){hint}", hint = if *.1 { DER_HINT } else { "" })]
    Missing(&'static str, bool),
    #[error("is damaged: {0}")]
    Damaged(String),
    #[error(
        "its key is encrypted, and nobody is asked for a passphrase; `openssl pkey -in OLD -out NEW` \
         writes it without one"
    )]
    Encrypted,
    #[error("certificate {0} of the file cannot be used: {1}")]
    Certificate(usize, String),
    #[error(
        "its key cannot be used: {0}; RSA of 2048 bits and more, ECDSA and Ed25519 are supported"
    )]
    Key(String),
    #[error("does not fit the first certificate of {}{}", .0.display(), ORDER_HINT[usize::from(*.1)])]
    Misfit(PathBuf, bool),
    #[error(
        "this host trusts no authority{0}; install ca-certificates, or name a file with the one that \
         issued the certificate of the service"
    )]
    NoAuthorities(String),
    #[error("cannot be used: {0}")]
    Refused(rustls::Error),
}

const DER_HINT: &str = "; it looks like DER, which `openssl x509 -inform der` or `openssl pkey -inform der` turns into PEM";
/// Whether the key fits another certificate of the chain.
const ORDER_HINT: [&str; 2] = [
    "",
    ", but a later one: the certificate that belongs to the key must come first",
];

/// What the files of a section were, by the key that is reported if they change.
pub(super) type Sums = BTreeMap<&'static str, u64>;

/// Reads the files of a section.
#[derive(Debug, Default)]
pub struct Files {
    pub(super) sums: Sums,
    /// The first certificate of each chain.
    pub(super) certificates: Vec<(PathBuf, Certificate)>,
    problems: Vec<Problem>,
}

/// Whom to trust.
pub struct Authorities {
    pub(super) store: RootCertStore,
    /// Those that the operator has named one by one.
    pub(super) certificates: Vec<CertificateDer<'static>>,
}

/// A key of a section that names a file.
#[derive(Clone, Copy)]
pub(super) struct Named<'a> {
    /// What is reported if the file changes.
    pub reported: &'static str,
    /// With its place in a list, for messages.
    pub key: &'a str,
    pub file: &'a Path,
}

impl Named<'_> {
    fn problem(&self, why: Why) -> Problem {
        Problem {
            key: self.key.to_owned(),
            file: Some(self.file.to_owned()),
            why,
        }
    }
}

/// The first certificate of a file.
///
/// # Errors
/// There is none.
pub fn first_certificate(file: &Path) -> Result<CertificateDer<'static>, LoadError> {
    let of = Named {
        reported: "certificate",
        key: "certificate",
        file,
    };
    let chain = Files::default().chain(of)?;
    // It has at least one.
    let first = chain.into_iter().next();
    Ok(first.ok_or_else(|| of.problem(Why::Missing("CERTIFICATE", false)))?)
}

impl Files {
    /// What was made of the files; `None`, or a problem on the way, is an error.
    pub(super) fn finish<T>(self, made: Option<T>) -> Result<(T, Self), LoadError> {
        match made {
            Some(made) if self.problems.is_empty() => Ok((made, self)),
            _ => Err(LoadError(self.problems)),
        }
    }

    /// Keeps what is wrong.
    fn tell<T>(&mut self, result: Result<T, Problem>) -> Option<T> {
        result.map_err(|problem| self.problems.push(problem)).ok()
    }

    /// What rustls does not accept.
    pub(super) fn refuse(&mut self, key: &str, error: rustls::Error) {
        let (key, file, why) = (key.to_owned(), None, Why::Refused(error));
        self.problems.push(Problem { key, file, why });
    }

    /// A chain and its key, which must fit each other.
    pub(super) fn certified(&mut self, chain: Named<'_>, key: Named<'_>) -> Option<CertifiedKey> {
        let certificates = self.chain(chain);
        let certificates = self.tell(certificates);
        let secret = self.key(key);
        let secret = self.tell(secret);
        let (certificates, secret) = (certificates?, secret?);
        let certified = certified(chain, key, certificates, secret);
        let certified = self.tell(certified)?;
        let first = certified.cert.first().map(|first| Certificate::of(first));
        let known = first.flatten().map(|first| (chain.file.to_owned(), first));
        self.certificates.extend(known);
        Some(certified)
    }

    /// The certificates of authorities.
    pub(super) fn authorities(&mut self, of: Named<'_>) -> Option<Authorities> {
        let certificates = self.chain(of);
        let certificates = self.tell(certificates)?;
        let mut store = RootCertStore::empty();
        let mut add = || {
            for (i, certificate) in certificates.iter().enumerate() {
                let refused =
                    |error: rustls::Error| of.problem(Why::Certificate(i + 1, error.to_string()));
                store.add(certificate.clone()).map_err(refused)?;
            }
            Ok(())
        };
        let added = add();
        self.tell(added)?;
        Some(Authorities {
            store,
            certificates,
        })
    }

    /// The authorities that this host trusts.
    pub(super) fn system(&mut self, key: &'static str) -> Option<Authorities> {
        let found = rustls_native_certs::load_native_certs();
        let mut store = RootCertStore::empty();
        for certificate in &found.certs {
            self.note(key, certificate);
        }
        let (added, _not_understood) = store.add_parsable_certificates(found.certs);
        if added == 0 {
            let errors: Vec<_> = found.errors.iter().map(|e| format!(" ({e})")).collect();
            let (key, file, why) = (key.to_owned(), None, Why::NoAuthorities(errors.concat()));
            return self.tell(Err(Problem { key, file, why }));
        }
        Some(Authorities {
            store,
            certificates: Vec::new(),
        })
    }

    /// The certificates of a file; at least one.
    fn chain(&mut self, of: Named<'_>) -> Result<Vec<CertificateDer<'static>>, Problem> {
        let text = self.read(of)?;
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
        let found = found.map_err(|error| of.problem(damaged(error)))?;
        if found.is_empty() {
            let is_der = text.starts_with(&[0x30]);
            return Err(of.problem(Why::Missing("CERTIFICATE", is_der)));
        }
        Ok(found)
    }

    /// The first key of a file.
    fn key(&mut self, of: Named<'_>) -> Result<PrivateKeyDer<'static>, Problem> {
        let text = self.read(of)?;
        let is_encrypted = || text.windows(9).any(|part| part == b"ENCRYPTED");
        PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
            of.problem(match error {
                _ if is_encrypted() => Why::Encrypted,
                pem::Error::NoItemsFound => Why::Missing("PRIVATE KEY", text.starts_with(&[0x30])),
                error => damaged(error),
            })
        })
    }

    fn read(&mut self, of: Named<'_>) -> Result<Vec<u8>, Problem> {
        let text = read(of.file).map_err(|why| of.problem(why))?;
        self.note(of.reported, &text);
        Ok(text)
    }

    fn note(&mut self, key: &'static str, bytes: &[u8]) {
        let sum = self.sums.entry(key).or_default();
        let mut hasher = DefaultHasher::new();
        (*sum, bytes).hash(&mut hasher);
        *sum = hasher.finish();
    }
}

/// A FIFO would be waited for, and cannot be read again.
fn read(path: &Path) -> Result<Vec<u8>, Why> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::PermissionDenied => Why::Forbidden(error),
        _ => Why::Unreadable(error),
    };
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(Why::NotAFile);
    }
    let file = File::open(path).map_err(failed)?;
    let mut text = Vec::new();
    let length = file.take(MOST_BYTES + 1).read_to_end(&mut text);
    match length.map_err(failed)? as u64 {
        0..=MOST_BYTES => Ok(text),
        _ => Err(Why::TooLarge),
    }
}

fn damaged(error: pem::Error) -> Why {
    Why::Damaged(match error {
        pem::Error::MissingSectionEnd { .. } => "a BEGIN line has no END line".to_owned(),
        pem::Error::IllegalSectionStart { .. } => "a BEGIN line has no end".to_owned(),
        pem::Error::Base64Decode(_) => "what follows a BEGIN line is not Base64".to_owned(),
        other => other.to_string(),
    })
}

fn certified(
    chain: Named<'_>,
    key: Named<'_>,
    certificates: Vec<CertificateDer<'static>>,
    secret: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, Problem> {
    let loader = super::provider().key_provider;
    let secret = loader.load_private_key(secret);
    let secret = secret.map_err(|error| key.problem(Why::Key(error.to_string())))?;
    let fits = |certificate: &CertificateDer<'static>| {
        CertifiedKey::new(vec![certificate.clone()], secret.clone()).keys_match()
    };
    let misfit = |later| key.problem(Why::Misfit(chain.file.to_owned(), later));
    match certificates.first().map(fits) {
        Some(Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown))) => {
            Ok(CertifiedKey::new(certificates, secret))
        }
        Some(Err(rustls::Error::InconsistentKeys(_))) => {
            Err(misfit(certificates.iter().any(|other| fits(other).is_ok())))
        }
        Some(Err(error)) => Err(chain.problem(Why::Certificate(1, error.to_string()))),
        None => Err(chain.problem(Why::Missing("CERTIFICATE", false))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::tests::lab::Lab;
    use crate::tls::{Acceptor, Connector};

    #[test]
    fn what_is_wrong_with_a_file_is_said_with_what_to_do() {
        let lab = Lab::new();
        let ca = lab.authority("ca");
        lab.issue("good", &["a.example"], &ca);
        lab.issue("other", &["a.example"], &ca);
        let text = |name: &str| std::fs::read_to_string(lab.path(name)).unwrap();
        let (crt, key, ca) = (text("good.crt"), text("good.key"), text("ca.crt"));
        let cut = |text: &str| text[..text.len() / 2].to_owned();
        let encrypted =
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let rsa = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: X\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
        let no_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        let no_certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let both = [&*ca, &*crt].concat();
        let chain = [&*crt, &*ca].concat();
        let large = "x".repeat(MOST_BYTES as usize + 1);
        for (certificate, private, expected) in [
            (&*crt, &*key, vec![]),
            (&*chain, &*[&*crt, &*key].concat(), vec![]),
            (
                "",
                &*key,
                vec!["certificate: X.crt: has no CERTIFICATE in PEM (-----BEGIN CERTIFICATE-----)"],
            ),
            (
                "0\u{3}",
                "0\u{3}",
                vec![
                    "certificate: X.crt: has no CERTIFICATE in PEM (-----BEGIN CERTIFICATE-----); it looks like DER",
                    "key: X.key: has no PRIVATE KEY in PEM (-----BEGIN PRIVATE KEY-----); it looks like DER",
                ],
            ),
            (
                &*key,
                &*crt,
                vec![
                    "certificate: X.crt: has no CERT",
                    "key: X.key: has no PRIVATE KEY",
                ],
            ),
            (
                &*cut(&crt),
                &*cut(&key),
                vec![
                    "certificate: X.crt: is damaged: a BEGIN line has no END line",
                    "key: X.key: is damaged: a BEGIN line has no END line",
                ],
            ),
            (
                &*crt,
                encrypted,
                vec!["key: X.key: its key is encrypted, and nobody is asked"],
            ),
            (
                &*crt,
                rsa,
                vec!["key: X.key: its key is encrypted, and nobody is asked"],
            ),
            (&*crt, no_key, vec!["key: X.key: its key cannot be used: "]),
            (
                no_certificate,
                &*key,
                vec!["certificate: X.crt: certificate 1 of the file cannot be used: "],
            ),
            (
                &*crt,
                &*text("other.key"),
                vec!["key: X.key: does not fit the first certificate of X.crt"],
            ),
            (
                &*both,
                &*key,
                vec![
                    "key: X.key: does not fit the first certificate of X.crt, but a later one: the certificate \
                 that belongs to the key must come first",
                ],
            ),
            (
                &*large,
                &*key,
                vec!["certificate: X.crt: is larger than 1024 KiB"],
            ),
        ] {
            lab.write("x.crt", certificate);
            lab.write("x.key", private);
            let lines = wrong(Acceptor::load(&lab.server(&["x"], "")), &lab);
            assert_eq!(lines.len(), expected.len(), "{lines:?}");
            for (line, expected) in lines.iter().zip(expected) {
                let expected = format!("s.certificates[0].{expected}");
                assert!(line.starts_with(&expected), "{line}\n{expected}");
            }
        }
    }

    /// The lines, with names in place of paths.
    fn wrong<T>(loaded: Result<T, LoadError>, lab: &Lab) -> Vec<String> {
        let error = loaded.err().unwrap_or(LoadError(Vec::new()));
        let short = |line: String| {
            let crt = lab.path("x.crt").display().to_string();
            let key = lab.path("x.key").display().to_string();
            line.replace(&crt, "X.crt").replace(&key, "X.key")
        };
        error.lines("s").map(short).collect()
    }

    #[test]
    fn all_that_is_wrong_is_said_at_once() {
        let lab = Lab::new();
        let ca = lab.authority("ca");
        lab.issue("good", &["a.example"], &ca);
        let keys = format!("client_ca: {}", lab.path("none.crt").display());
        let server = lab.server(&["none", "good", "none"], &keys);
        let lines = wrong(Acceptor::load(&server), &lab);
        let places = lines.iter().map(|line| line.split(": ").next().unwrap());
        let expected = [
            "s.certificates[0].certificate",
            "s.certificates[0].key",
            "s.certificates[2].certificate",
            "s.certificates[2].key",
            "s.client_ca",
        ];
        assert_eq!(places.collect::<Vec<_>>(), expected);
        assert!(
            lines[0].contains("cannot be read: No such file"),
            "{lines:?}"
        );
        lab.write(
            "bad.crt",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        );
        let keys = format!("certificate: {0}, key: {0}", lab.path("").display());
        let lines = wrong(Connector::load(&lab.client("bad", &keys)), &lab);
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(
            lines[0].contains("certificate 1 of the file cannot be used"),
            "{lines:?}"
        );
        assert!(lines[1].ends_with("is not a regular file"), "{lines:?}");
    }
}
