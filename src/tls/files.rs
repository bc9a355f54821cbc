//! Certificates and keys out of PEM files, and what is wrong with those that cannot be used.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::certificate::Certificate;
use super::failure::SUPPORTED_KEYS;

/// No file is larger; the bundle of all public authorities has a quarter of it.
const MOST_BYTES: u64 = 1 << 20;

/// Everything that is wrong with the files of a section, one line each.
#[derive(Debug)]
pub struct LoadError(Vec<Problem>);

impl LoadError {
    /// The lines, where the section is at this place: `listeners[orders].tls`. Each with its key below that.
    pub fn lines(&self, section: &str) -> impl Iterator<Item = (&str, String)> {
        let line = move |problem: &Problem| format!("{section}.{problem}");
        self.0
            .iter()
            .map(move |problem| (&*problem.key, line(problem)))
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
    #[error("its key cannot be used; {SUPPORTED_KEYS}")]
    Key,
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

/// What the byte order mark of UTF-8 is; Windows begins text files with it.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What is shown to peers: a certificate, and those that lead from it to an authority.
#[derive(Clone, Debug)]
pub struct Chain {
    /// As it is configured.
    pub file: PathBuf,
    /// The certificate whose key is here.
    pub first: Certificate,
    /// The one that ends before the others do.
    pub ends_first: Certificate,
}

impl Chain {
    /// Which of its certificates ends first, where that is not the first of them, in parentheses.
    #[must_use]
    pub fn whose_end(&self) -> String {
        match self.ends_first == self.first {
            true => String::new(),
            false => format!(" ({}, of its chain)", self.ends_first.owner()),
        }
    }
}

/// Something about a file that works, and is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Concern {
    /// In which file, and what.
    pub found: String,
    /// What that leads to.
    pub meaning: &'static str,
    /// What helps.
    pub remedy: &'static str,
}

impl fmt::Display for Concern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            found,
            meaning,
            remedy,
        } = self;
        write!(f, "{found}: {meaning}; set: {remedy}")
    }
}

/// What the files of a section were, by the key that is reported if they change.
pub(super) type Sums = BTreeMap<&'static str, u64>;

/// Reads the files of a section.
#[derive(Debug, Default)]
pub struct Files {
    pub(super) sums: Sums,
    pub(super) chains: Vec<Chain>,
    pub(super) concerns: Vec<Concern>,
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
        let certificates = described(chain, &certified.cert);
        let certificates = self.tell(certificates)?;
        self.concerns.extend(strangers(chain.file, &certificates));
        let ends_first = certificates.iter().min_by_key(|it| it.not_after.seconds);
        self.chains.push(Chain {
            file: chain.file.to_owned(),
            first: certificates.first()?.clone(),
            ends_first: ends_first?.clone(),
        });
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
        self.concerns.extend(everybodys(of.file));
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
        match text.strip_prefix(BYTE_ORDER_MARK) {
            Some(text) => Ok(text.to_vec()),
            None => Ok(text),
        }
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

/// Whether anybody on this host may read a key: he may enter each folder on the way to it, too.
fn everybodys(file: &Path) -> Option<Concern> {
    let found = file.canonicalize().ok()?;
    let mode = |path: &Path| path.metadata().map_or(0, |found| found.mode());
    let may_enter = |folder: &Path| mode(folder) & 0o001 != 0;
    let is_open = mode(&found) & 0o004 != 0 && found.ancestors().skip(1).all(may_enter);
    is_open.then(|| Concern {
        found: format!("{}: mode {:04o}", file.display(), mode(&found) & 0o7777),
        meaning: "everybody on this host may read the key",
        remedy: "chmod o-r",
    })
}

/// All certificates of a chain.
fn described(of: Named<'_>, chain: &[CertificateDer<'_>]) -> Result<Vec<Certificate>, Problem> {
    let described = chain.iter().enumerate().map(|(i, der)| {
        let damaged = || of.problem(Why::Certificate(i + 1, "it is damaged".to_owned()));
        Certificate::of(der).ok_or_else(damaged)
    });
    described.collect()
}

/// Certificates that have nothing to do with the one before.
fn strangers<'a>(file: &'a Path, chain: &'a [Certificate]) -> impl Iterator<Item = Concern> + 'a {
    let file = file.display();
    let pairs = chain.iter().zip(chain.iter().skip(1)).enumerate();
    let strangers = pairs.filter(|(_, (it, next))| !next.is_issuer_of(it));
    strangers.map(move |(i, (it, next))| Concern {
        found: format!(
            "{file}: certificate {}, {}, did not issue the one before it, {}",
            i + 2,
            next.owner(),
            it.owner()
        ),
        meaning: "some clients do not find the way to an authority",
        remedy: "the chain in order, each certificate before the one of its issuer",
    })
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
    let secret = secret.map_err(|_| key.problem(Why::Key))?;
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
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
    };

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
            (
                &*crt,
                no_key,
                vec![
                    "key: X.key: its key cannot be used; RSA of 2048 bits and more, ECDSA P-256 and P-384, and Ed25519 \
                     are supported",
                ],
            ),
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
        error.lines("s").map(|(_, line)| short(line)).collect()
    }

    /// A chain of three; the second of them ends on this day of 2090.
    fn chained(lab: &Lab, day: u8) -> [String; 3] {
        let made = |name: &str| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params
        };
        let root = CertifiedIssuer::self_signed(made("root"), KeyPair::generate().unwrap());
        let root = root.unwrap();
        let mut middle = made("middle");
        middle.not_after = date_time_ymd(2090, 1, day);
        let middle = CertifiedIssuer::signed_by(middle, KeyPair::generate().unwrap(), &root);
        let middle = middle.unwrap();
        let key = KeyPair::generate().unwrap();
        let mut first = made("first");
        first.not_after = date_time_ymd(2090, 1, 15);
        let first = first.signed_by(&key, &middle).unwrap();
        lab.write("x.key", key.serialize_pem());
        [first.pem(), middle.pem(), root.pem()]
    }

    #[test]
    fn a_chain_is_good_as_long_as_all_of_it() {
        let lab = Lab::new();
        for (day, whose, expected) in [
            (14, " (middle, of its chain)", "2090-01-14"),
            (15, "", "2090-01-15"),
            (16, "", "2090-01-15"),
        ] {
            lab.write("x.crt", chained(&lab, day).concat());
            let chains = Acceptor::load(&lab.server(&["x"], "")).unwrap().chains();
            let found = &chains[0];
            assert_eq!(found.first.owner(), "first");
            assert_eq!(found.whose_end(), whose);
            assert_eq!(found.ends_first.not_after.to_string(), expected);
        }
    }

    #[test]
    fn all_of_a_chain_is_looked_at() {
        let lab = Lab::new();
        let [first, middle, root] = chained(&lab, 20);
        let concerns = |chain: &[&str]| {
            lab.write("x.crt", chain.concat());
            let made = Acceptor::load(&lab.server(&["x"], "")).unwrap();
            let of_chain = made.concerns().into_iter();
            let of_chain = of_chain.filter(|it| it.found.contains("did not issue"));
            of_chain.map(|it| it.found).collect::<Vec<_>>()
        };
        assert!(concerns(&[&first, &middle, &root]).is_empty());
        assert!(concerns(&[&first, &middle]).is_empty());
        let found = concerns(&[&first, &root]);
        let expected = "x.crt: certificate 2, root, did not issue the one before it, first";
        assert!(
            found.len() == 1 && found[0].ends_with(expected),
            "{found:?}"
        );
        let nothing = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        lab.write("x.crt", [&*first, &middle, nothing].concat());
        let lines = wrong(Acceptor::load(&lab.server(&["x"], "")), &lab);
        let expected = "s.certificates[0].certificate: X.crt: certificate 3 of the file cannot be used: it is damaged";
        assert_eq!(lines, [expected]);
    }

    #[test]
    fn a_key_that_everybody_may_read_is_a_concern() {
        use std::os::unix::fs::PermissionsExt;

        let lab = Lab::new();
        lab.issue("x", &["a.example"], &lab.authority("ca"));
        let set =
            |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode));
        let concerns = |folder, key| {
            set(&lab.path("x.key"), key).unwrap();
            set(&lab.path(""), folder).unwrap();
            let made = Acceptor::load(&lab.server(&["x"], "")).unwrap();
            made.concerns()
                .into_iter()
                .map(|it| it.to_string())
                .collect::<Vec<_>>()
        };
        let found = concerns(0o755, 0o644);
        let expected = "x.key: mode 0644: everybody on this host may read the key; set: chmod o-r";
        assert!(
            found.len() == 1 && found[0].ends_with(expected),
            "{found:?}"
        );
        assert!(concerns(0o755, 0o640).is_empty());
        assert!(concerns(0o750, 0o644).is_empty());
    }

    #[test]
    fn a_byte_order_mark_does_no_harm() {
        let lab = Lab::new();
        let ca = lab.authority("ca");
        lab.issue("x", &["a.example"], &ca);
        for file in ["x.crt", "x.key", "ca.crt"] {
            let text = std::fs::read(lab.path(file)).unwrap();
            lab.write(file, [BYTE_ORDER_MARK, &text].concat());
        }
        let keys = format!("client_ca: {}", lab.path("ca.crt").display());
        Acceptor::load(&lab.server(&["x"], &keys)).unwrap();
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
