//! Why there is no TLS, in words that an operator can use.

use std::fmt;
use std::io;

use rustls::{
    AlertDescription, CertificateError, Error, HandshakeType, InvalidMessage, OtherError,
    PeerIncompatible, PeerMisbehaved,
};

use super::certificate::Certificate;
use crate::metrics::HandshakeFailure;

/// Kinds of keys, for the operator.
pub(super) const SUPPORTED_KEYS: &str =
    "RSA of 2048 bits and more, ECDSA P-256 and P-384, and Ed25519 are supported";

/// Why there is no TLS on a leg.
#[derive(Debug)]
pub struct HandshakeError {
    /// For counting.
    pub failure: HandshakeFailure,
    /// For the operator.
    pub text: String,
    /// What the socket says, if that is why.
    pub io: Option<io::Error>,
    /// The name that the client asked for (SNI), where it came so far.
    pub server_name: Option<String>,
}

/// Of what a peer says first, so much is kept for the operator.
pub(super) const KEPT: usize = 32;

/// What is known of a handshake that has failed.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    /// The name that the client asked for (SNI).
    pub server_name: Option<String>,
    /// The certificate that was not accepted.
    pub refused: Option<Box<Certificate>>,
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for HandshakeError {}

/// Of a judgement beside a handshake.
impl From<&Error> for HandshakeError {
    fn from(error: &Error) -> Self {
        Self::of(error, &[], &Told::default())
    }
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        let text = format!("the connection failed during the handshake: {error}");
        Self {
            io: Some(error),
            ..Self::new(HandshakeFailure::Closed, text)
        }
    }
}

impl From<Broken> for HandshakeError {
    fn from(broken: Broken) -> Self {
        Self::new(HandshakeFailure::ProtocolError, broken.text)
    }
}

impl HandshakeError {
    /// One of which nothing more is known.
    #[must_use]
    pub fn new(failure: HandshakeFailure, text: impl Into<String>) -> Self {
        Self {
            failure,
            text: text.into(),
            io: None,
            server_name: None,
        }
    }

    /// The peer's FIN has come; this came first.
    pub(super) fn ended(first: &[u8]) -> Self {
        let text = match first {
            [] => "the peer ended the connection before it said anything",
            first if !is_record(first) => {
                return Self::new(HandshakeFailure::PlainText, plain_text(first));
            }
            _ => "the peer ended the connection in the middle of the handshake",
        };
        Self::new(HandshakeFailure::Closed, text)
    }

    /// What a stream of tokio-rustls says, over which `first` came first.
    #[must_use]
    pub fn of_stream(error: io::Error, first: &[u8]) -> Self {
        match error.downcast::<Error>() {
            Ok(error) => Self::of(&error, first, &Told::default()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Self::ended(first),
            Err(error) => error.into(),
        }
    }

    /// What rustls says. `first` is what the peer said first.
    pub(super) fn of(error: &Error, first: &[u8], told: &Told) -> Self {
        let failure = classify(error, first);
        let text = match (failure, error) {
            (HandshakeFailure::PlainText, _) if is_record(first) => {
                "the peer does not speak TLS, but sends back what it gets".to_owned()
            }
            (HandshakeFailure::PlainText, _) => plain_text(first),
            (HandshakeFailure::UnknownServerName, _) => match &told.server_name {
                Some(name) => {
                    format!("no certificate is for the name that the client asked for, {name}")
                }
                None => "the client did not say what name it asks for (SNI)".to_owned(),
            },
            (_, Error::AlertReceived(alert)) => refusal("the handshake", *alert),
            (_, Error::InvalidCertificate(error)) => match &told.refused {
                Some(refused) => format!("{}; it is that of {refused}", certificate(error)),
                None => certificate(error),
            },
            (HandshakeFailure::NoClientCertificate, _) => {
                "the client sent no certificate, and one is required (client_auth)".to_owned()
            }
            (_, error) => sentence(error),
        };
        Self::new(failure, text)
    }
}

/// Why an established connection cannot be read any more.
#[derive(Debug)]
pub(super) struct Broken {
    kind: io::ErrorKind,
    text: String,
}

impl Broken {
    pub fn error(&self) -> io::Error {
        io::Error::new(self.kind, self.text.clone())
    }
}

/// The peer's FIN has come first.
pub(super) fn truncated() -> Broken {
    Broken {
        kind: io::ErrorKind::UnexpectedEof,
        text: "the peer ended the connection without close_notify, so its stream may be cut"
            .to_owned(),
    }
}

/// More of a message was received than is held.
pub(super) fn too_long() -> Broken {
    Broken {
        kind: io::ErrorKind::InvalidData,
        text: "the peer sends a handshake message that is too long".to_owned(),
    }
}

/// What rustls says of an established connection.
pub(super) fn broken(error: &Error) -> Broken {
    match error {
        Error::AlertReceived(alert) => Broken {
            kind: io::ErrorKind::ConnectionAborted,
            text: refusal("TLS", *alert),
        },
        error => Broken {
            kind: io::ErrorKind::InvalidData,
            text: format!("TLS is broken: {}", sentence(error)),
        },
    }
}

fn classify(error: &Error, first: &[u8]) -> HandshakeFailure {
    use HandshakeFailure as Failure;
    match error {
        _ if !first.is_empty() && !is_record(first) => Failure::PlainText,
        Error::InappropriateHandshakeMessage {
            expect_types,
            got_type: HandshakeType::ClientHello,
        } if expect_types.contains(&HandshakeType::ServerHello) => Failure::PlainText,
        Error::InvalidCertificate(error) => of_certificate(error),
        Error::NoCertificatesPresented => Failure::NoClientCertificate,
        Error::AlertReceived(AlertDescription::CloseNotify) => Failure::Closed,
        Error::AlertReceived(AlertDescription::NoApplicationProtocol)
        | Error::NoApplicationProtocol => Failure::NoApplicationProtocol,
        Error::AlertReceived(_) => Failure::RefusedByPeer,
        Error::PeerIncompatible(why) if is_about_version(why) => Failure::NoSharedVersion,
        Error::PeerIncompatible(_) => Failure::NoSharedCipher,
        // Said of the resolver of certificates, and of nothing else.
        Error::General(text) if text.contains("no server certificate") => {
            Failure::UnknownServerName
        }
        _ => Failure::ProtocolError,
    }
}

fn of_certificate(error: &CertificateError) -> HandshakeFailure {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            HandshakeFailure::CertificateExpired
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            HandshakeFailure::CertificateNotYetValid
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            HandshakeFailure::WrongName
        }
        CertificateError::UnknownIssuer => HandshakeFailure::UnknownCa,
        _ => HandshakeFailure::BadCertificate,
    }
}

/// What rustls says beside that.
fn sentence(error: &Error) -> String {
    let text = match error {
        Error::PeerIncompatible(why) => return incompatible(why),
        Error::PeerMisbehaved(PeerMisbehaved::ServerNameMustContainOneHostName) => {
            "the client asks for what is no host name, or for several names at once (SNI)"
        }
        Error::InvalidMessage(
            InvalidMessage::MessageTooLarge
            | InvalidMessage::HandshakePayloadTooLarge
            | InvalidMessage::CertificatePayloadTooLarge,
        ) => "the peer sends a message that is longer than TLS allows",
        Error::PeerMisbehaved(why) => {
            return format!("the peer breaks the rules of TLS: {}", plain(why));
        }
        Error::InvalidMessage(why) => {
            return format!("the peer sends what is no message of TLS: {}", plain(why));
        }
        Error::NoApplicationProtocol => {
            "the client offers none of the protocols that alpn lists (ALPN)"
        }
        error => return error.to_string(),
    };
    text.to_owned()
}

/// What both sides do not have in common.
fn incompatible(why: &PeerIncompatible) -> String {
    let text = match why {
        _ if is_about_version(why) => {
            "the peer speaks older versions of TLS only; 1.2 and 1.3 are spoken here, from min_version on"
        }
        PeerIncompatible::NoCipherSuitesInCommon => {
            "the peer offers none of the cipher suites that are spoken here: ECDHE with AES-GCM or \
             ChaCha20-Poly1305"
        }
        PeerIncompatible::NoKxGroupsInCommon
        | PeerIncompatible::NamedGroupsExtensionRequired
        | PeerIncompatible::KeyShareExtensionRequired => {
            "the peer offers none of the groups that keys are exchanged by here: X25519, P-256, P-384"
        }
        PeerIncompatible::NoSignatureSchemesInCommon
        | PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon => {
            "the peer understands no signature that the key of our certificate makes"
        }
        why => return format!("the peer lacks what TLS needs: {}", plain(why)),
    };
    text.to_owned()
}

fn is_about_version(why: &PeerIncompatible) -> bool {
    matches!(
        why,
        PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::SupportedVersionsExtensionRequired
            // What a client of TLS 1.1 lacks first (RFC 5246, 7.4.1.4.1).
            | PeerIncompatible::SignatureAlgorithmsExtensionRequired
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
    )
}

/// The name that rustls has for it, as words.
fn plain(why: &impl fmt::Debug) -> String {
    words(&format!("{why:?}"))
}

/// What is wrong with the peer's certificate, and what helps.
fn certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::ExpiredContext { time, not_after } => {
            let ago = time.as_secs().saturating_sub(not_after.as_secs());
            format!("the peer's certificate expired {} ago", span(ago))
        }
        CertificateError::NotValidYetContext { time, not_before } => {
            let ahead = not_before.as_secs().saturating_sub(time.as_secs());
            format!(
                "the peer's certificate is not valid for another {}; is the clock right, here and where it \
                 was issued?",
                span(ahead)
            )
        }
        CertificateError::NotValidForNameContext {
            expected,
            presented,
        } => {
            let expected = expected.to_str();
            match presented.iter().map(|name| bare(name)).collect::<Vec<_>>() {
                none if none.is_empty() => {
                    format!("the peer's certificate is not for {expected}; it has no name (SAN)")
                }
                names => format!(
                    "the peer's certificate is not for {expected}, but for {}",
                    names.join(", ")
                ),
            }
        }
        CertificateError::UnknownIssuer => {
            "the peer's certificate was issued by a CA that is not among those configured, or the peer does \
             not send its whole chain"
                .to_owned()
        }
        CertificateError::BadSignature => {
            "a signature of the peer's certificate is wrong; a CA made anew has the old name and another key"
                .to_owned()
        }
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => format!(
            "the peer's certificate, or one of its chain, has another kind of key or signature; {SUPPORTED_KEYS}"
        ),
        CertificateError::Other(OtherError(why)) => why.to_string(),
        error => format!("the peer's certificate is not accepted: {error}"),
    }
}

/// `DnsName("a.example")` as `a.example`.
fn bare(name: &str) -> &str {
    let inner = name.split_once('(').map_or(name, |(_kind, inner)| inner);
    inner.trim_end_matches(')').trim_matches('"')
}

fn span(seconds: u64) -> String {
    match seconds {
        0..7_200 => format!("{seconds} s"),
        7_200..172_800 => format!("{} hours", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// The peer's fatal alert.
fn refusal(what: &str, alert: AlertDescription) -> String {
    let number = u8::from(alert);
    let hint = match alert {
        AlertDescription::UnknownCA => ": it does not trust the CA that issued our certificate",
        AlertDescription::CertificateExpired => ": our certificate is over, or its clock is wrong",
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::CertificateRevoked => ": it does not accept our certificate",
        AlertDescription::CertificateRequired => ": it demands a certificate, and got none from us",
        AlertDescription::ProtocolVersion => ": it does not speak our versions of TLS",
        AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity => {
            ": it accepts none of our cipher suites, or demands a certificate"
        }
        AlertDescription::UnrecognisedName => ": it does not know the name that it was asked for",
        AlertDescription::NoApplicationProtocol => {
            ": it speaks none of the protocols that it was offered (ALPN)"
        }
        AlertDescription::AccessDenied => ": it does not let us in",
        _ => "",
    };
    let name = words(alert.as_str().unwrap_or("unknown"));
    format!("the peer refused {what} with the alert \"{name}\" ({number}){hint}")
}

/// `BadRecordMac` as `bad record mac`, `UnknownCA` as `unknown ca`.
fn words(name: &str) -> String {
    let mut words = String::new();
    let mut before = 'A';
    for letter in name.chars() {
        if letter.is_uppercase() && before.is_lowercase() {
            words.push(' ');
        }
        words.extend(letter.to_lowercase());
        before = letter;
    }
    words
}

/// Whether what has come begins as a record of TLS does.
fn is_record(first: &[u8]) -> bool {
    matches!(first, [20..=24] | [20..=24, 3, ..])
}

/// What somebody speaks who does not speak TLS.
fn plain_text(received: &[u8]) -> String {
    /// The request of PostgreSQL's protocol to go on in TLS.
    const SSL_REQUEST: &[u8] = b"\0\0\0\x08\x04\xd2\x16\x2f";
    let begins = |starts: &[&[u8]]| starts.iter().any(|start| received.starts_with(start));
    let what = if begins(&[SSL_REQUEST]) {
        "PostgreSQL's request for TLS inside its own protocol; let the client begin with TLS \
         (sslnegotiation=direct)"
    } else if begins(&[b"GET ", b"POST ", b"HEAD ", b"PUT ", b"OPTIONS ", b"HTTP/"]) {
        "plain HTTP"
    } else if begins(&[b"SSH-"]) {
        "SSH"
    } else if begins(&[b"PROXY ", b"\r\n\r\n\0\r\nQUIT\n"]) {
        "a PROXY header, which is not expected there (proxy_protocol)"
    } else {
        let start = received[..received.len().min(16)].escape_ascii();
        return format!("the peer does not speak TLS; it begins with \"{start}\"");
    };
    format!("the peer does not speak TLS, but {what}")
}
