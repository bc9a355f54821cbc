//! What people want to know of a certificate: whose it is, who issued it, and for how long it is good. Nobody
//! is trusted because of it: that is for rustls.

use std::fmt;
use std::net::IpAddr;

use rustls::pki_types::CertificateDer;

/// Longer names are cut.
const LONGEST_NAME: usize = 253;

// Tags of DER (X.690) that certificates have (RFC 5280).
const BOOLEAN: u8 = 0x01;
const OCTETS: u8 = 0x04;
const OBJECT: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
const EMAIL: u8 = 0x81;
const DNS: u8 = 0x82;
const URI: u8 = 0x86;
const ADDRESS: u8 = 0x87;

/// id-ce-subjectAltName, 2.5.29.17.
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
/// id-at-commonName, 2.5.4.3.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// What a certificate says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// As it is sent.
    pub der: CertificateDer<'static>,
    /// Its first DNS name, email address, URI or IP address (SAN); else its common name.
    pub identity: Option<String>,
    /// All of these (SAN).
    pub names: Vec<String>,
    /// The common name of whoever issued it.
    pub issuer: Option<String>,
    /// The whole names of its owner and of whoever issued it.
    owner_and_issuer: [Vec<u8>; 2],
    /// It is good from then on.
    pub not_before: Date,
    /// It is good until then.
    pub not_after: Date,
}

/// A second, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date {
    /// Since the Unix epoch.
    pub seconds: i64,
    /// Year, month, day.
    day: [i64; 3],
}

/// Whether a certificate is good at some time, as far as its dates say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// It is, for so many whole days.
    Days(i64),
    /// It was, until then.
    Expired(Date),
    /// It will be.
    NotYet(Date),
}

impl Certificate {
    /// Reads one, DER. `None` if it is none.
    #[must_use]
    pub fn of(der: &[u8]) -> Option<Self> {
        let mut tbs = Der(Der(Der(der).value(SEQUENCE)?).value(SEQUENCE)?);
        let first = tbs.next()?;
        let _serial = if first.0 == VERSION {
            tbs.next()?
        } else {
            first
        };
        let _signature = tbs.value(SEQUENCE)?;
        let issuer = tbs.value(SEQUENCE)?;
        let mut validity = Der(tbs.value(SEQUENCE)?);
        let subject = tbs.value(SEQUENCE)?;
        let extensions = tbs.find(|(tag, _)| *tag == EXTENSIONS);
        let names = extensions.and_then(|(_, extensions)| alternative_names(extensions));
        let names = names.unwrap_or_default();
        Some(Self {
            der: der.to_vec().into(),
            identity: names.first().cloned().or_else(|| common_name(subject)),
            names,
            issuer: common_name(issuer),
            owner_and_issuer: [subject, issuer].map(<[u8]>::to_vec),
            not_before: Date::of(validity.next()?)?,
            not_after: Date::of(validity.next()?)?,
        })
    }

    /// Whether another one says that the owner of this one has issued it.
    #[must_use]
    pub fn is_issuer_of(&self, other: &Self) -> bool {
        self.owner_and_issuer[0] == other.owner_and_issuer[1]
    }

    /// Whose it is.
    #[must_use]
    pub fn owner(&self) -> &str {
        self.identity.as_deref().unwrap_or("nobody")
    }

    /// Whether it is good at a time, given in seconds since the Unix epoch.
    #[must_use]
    pub fn validity(&self, now: i64) -> Validity {
        match self.not_after.seconds - now {
            _ if self.not_before.seconds > now => Validity::NotYet(self.not_before),
            left if left < 0 => Validity::Expired(self.not_after),
            left => Validity::Days(left / 86_400),
        }
    }
}

impl Validity {
    /// An operator has this long to renew a certificate that he is warned of, in days.
    const SOON: i64 = 7;

    /// Whether an operator should do something.
    #[must_use]
    pub fn needs_renewal(self) -> bool {
        !matches!(self, Self::Days(Self::SOON..))
    }
}

/// As a part of a line: whose, by whom, until when.
impl fmt::Display for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (owner, issuer) = (self.owner(), self.issuer.as_deref().unwrap_or("nobody"));
        let (from, until) = (self.not_before, self.not_after);
        write!(f, "{owner}, issued by {issuer}, {from} to {until}")
    }
}

/// As the rest of a sentence about the certificate.
impl fmt::Display for Validity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Days(1) => f.write_str("is good for 1 more day"),
            Self::Days(days) => write!(f, "is good for {days} more days"),
            Self::Expired(date) => write!(f, "expired on {date}"),
            Self::NotYet(date) => write!(f, "is not valid before {date}"),
        }
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [year, month, day] = self.day;
        write!(f, "{year}-{month:02}-{day:02}")
    }
}

impl Date {
    /// RFC 5280, 4.1.2.5: seconds are there, and the zone is Z.
    fn of((tag, text): (u8, &[u8])) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
        let (year, rest) = text.split_at_checked(match tag {
            UTC_TIME => 2,
            GENERALIZED_TIME => 4,
            _ => return None,
        })?;
        let year = match (tag, number(year)?) {
            (UTC_TIME, year @ ..50) => year + 2000,
            (UTC_TIME, year) => year + 1900,
            (_, year) => year,
        };
        let pair = |at: usize| number(rest.get(at..at + 2)?);
        let (day, time) = ([year, pair(0)?, pair(2)?], [pair(4)?, pair(6)?, pair(8)?]);
        let fits = (1..=12).contains(&day[1]) && (1..=31).contains(&day[2]) && rest.len() == 10;
        let seconds = days_since_epoch(day) * 86_400 + time[0] * 3600 + time[1] * 60 + time[2];
        fits.then_some(Self { seconds, day })
    }
}

fn number(digits: &str) -> Option<i64> {
    let all = digits.bytes().all(|b| b.is_ascii_digit());
    digits.parse().ok().filter(|_| all)
}

/// In the Gregorian calendar, with years that begin in March: leap days come last.
fn days_since_epoch([year, month, day]: [i64; 3]) -> i64 {
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + (153 * month + 2) / 5 + day - 719_469
}

/// The alternative names that are a text or an address.
fn alternative_names(extensions: &[u8]) -> Option<Vec<String>> {
    let names = Der(Der(extensions).value(SEQUENCE)?).find_map(|(_, extension)| {
        let mut parts = Der(extension).filter(|(tag, _)| *tag != BOOLEAN);
        let is_it = parts.next()? == (OBJECT, SUBJECT_ALT_NAME);
        let (tag, value) = parts.next()?;
        (is_it && tag == OCTETS).then_some(value)
    });
    let names = Der(Der(names?).value(SEQUENCE)?);
    let names = names.filter_map(|(tag, name)| match (tag, name.len()) {
        (EMAIL | DNS | URI, _) => Some(printable(name)),
        (ADDRESS, 4) => Some(IpAddr::from(<[u8; 4]>::try_from(name).ok()?).to_string()),
        (ADDRESS, 16) => Some(IpAddr::from(<[u8; 16]>::try_from(name).ok()?).to_string()),
        _ => None,
    });
    Some(names.collect())
}

/// The last one is the most particular.
fn common_name(name: &[u8]) -> Option<String> {
    let sets = Der(name).filter(|(tag, _)| *tag == SET);
    let attributes = sets.flat_map(|(_, set)| Der(set));
    let names = attributes.filter_map(|(_, attribute)| {
        let mut parts = Der(attribute);
        let is_it = parts.next()? == (OBJECT, COMMON_NAME);
        let (_, text) = parts.next()?;
        is_it.then_some(text)
    });
    names.last().map(printable)
}

/// Whoever made the certificate chose the text, which is to stand in a log.
fn printable(text: &[u8]) -> String {
    let fits = |c: char| c.is_alphanumeric() || c.is_ascii_graphic() || c == ' ';
    let text = String::from_utf8_lossy(text);
    let text = text.chars().map(|c| if fits(c) { c } else { '?' });
    let mut end = 0;
    let short = text.take_while(|c| {
        end += c.len_utf8();
        end <= LONGEST_NAME
    });
    short.collect()
}

/// Values in DER, one after the other.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next value, which must have this tag.
    fn value(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next()
            .filter(|(found, _)| *found == tag)
            .map(|(_, value)| value)
    }
}

/// Tag and content; none once something is cut off.
impl<'a> Iterator for Der<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (&[tag, first], rest) = self.0.split_first_chunk::<2>()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            // Of how many bytes the length is.
            0x81..=0x84 => {
                let (length, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                let length = length.iter().fold(0, |n, byte| n << 8 | usize::from(*byte));
                (length, rest)
            }
            _ => return None,
        };
        let (value, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, value))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DnType, DnValue, KeyPair, SanType, date_time_ymd};

    use super::*;

    fn made(change: impl FnOnce(&mut CertificateParams)) -> Certificate {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        change(&mut params);
        let made = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        Certificate::of(made.der()).unwrap()
    }

    #[test]
    fn the_dates_are_those_of_the_certificate() {
        let both = |from: (i32, u8, u8), until: (i32, u8, u8)| {
            let made = made(|params| {
                params.not_before = date_time_ymd(from.0, from.1, from.2);
                params.not_after = date_time_ymd(until.0, until.1, until.2);
            });
            (made.not_before, made.not_after)
        };
        // 2050 and later are written in another way.
        for (from, until) in [
            ((1970, 1, 1), (2049, 12, 31)),
            ((2000, 2, 29), (2050, 1, 1)),
            ((2024, 3, 1), (2100, 2, 28)),
            ((1999, 12, 31), (2400, 2, 29)),
        ] {
            let (made_from, made_until) = both(from, until);
            for ((year, month, day), made) in [(from, made_from), (until, made_until)] {
                let exact = date_time_ymd(year, month, day).unix_timestamp();
                assert_eq!(made.seconds, exact, "{year}-{month}-{day}");
                assert_eq!(made.to_string(), format!("{year}-{month:02}-{day:02}"));
            }
        }
    }

    #[test]
    fn the_identity_is_the_first_alternative_name_or_the_common_name() {
        let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
        let of = |names: Vec<SanType>| {
            made(|params| {
                params.subject_alt_names = names;
                params.distinguished_name.push(DnType::CommonName, "cn");
            })
            .identity
        };
        let email = SanType::Rfc822Name("a@b.example".try_into().unwrap());
        let uri = SanType::URI("spiffe://a/b".try_into().unwrap());
        let other = SanType::OtherName((vec![1, 2, 3], "x".into()));
        assert_eq!(of(vec![]).as_deref(), Some("cn"));
        assert_eq!(
            of(vec![dns("a.example"), dns("b.example")]).as_deref(),
            Some("a.example")
        );
        assert_eq!(
            of(vec![email, dns("b.example")]).as_deref(),
            Some("a@b.example")
        );
        assert_eq!(of(vec![other, uri]).as_deref(), Some("spiffe://a/b"));
        for ip in ["192.0.2.7", "2001:db8::1"] {
            let of_ip = of(vec![SanType::IpAddress(ip.parse().unwrap())]);
            assert_eq!(of_ip.as_deref(), Some(ip));
        }
        let nobody = made(|_| ());
        assert_eq!(nobody.identity, None);
        assert_eq!(
            nobody.to_string(),
            "nobody, issued by nobody, 1975-01-01 to 4096-01-01"
        );
        let twice = made(|params| {
            let name = &mut params.distinguished_name;
            name.push(DnType::OrganizationName, "o");
            name.push(
                DnType::CommonName,
                DnValue::Utf8String("Köln \u{202e}\n".to_owned()),
            );
        });
        assert_eq!(twice.identity.as_deref(), Some("Köln ??"));
        assert_eq!(twice.issuer, twice.identity);
        let long = made(|params| {
            let name = DnValue::Utf8String("ö".repeat(400));
            params.distinguished_name.push(DnType::CommonName, name);
        });
        assert_eq!(long.identity.unwrap().len(), 252);
    }

    #[test]
    fn a_certificate_is_good_from_its_first_to_its_last_second() {
        let made = made(|params| {
            params.not_before = date_time_ymd(2030, 1, 1);
            params.not_after = date_time_ymd(2030, 1, 3);
        });
        let [from, until] = [made.not_before.seconds, made.not_after.seconds];
        let at = |now| made.validity(now).to_string();
        assert_eq!(at(from - 1), "is not valid before 2030-01-01");
        assert_eq!(at(from), "is good for 2 more days");
        assert_eq!(at(from + 1), "is good for 1 more day");
        assert_eq!(at(until), "is good for 0 more days");
        assert_eq!(at(until + 1), "expired on 2030-01-03");
    }

    #[test]
    fn what_is_cut_off_is_no_certificate() {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["a.example".to_owned()]).unwrap();
        let der = params.self_signed(&key).unwrap().der().to_vec();
        for length in 0..der.len() {
            assert_eq!(Certificate::of(&der[..length]), None, "{length}");
        }
    }

    proptest! {
        #[test]
        fn damage_never_panics(
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
        ) {
            let params = CertificateParams::new(["a.example".to_owned()]).unwrap();
            static DER: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
            let mut der = DER
                .get_or_init(|| {
                    let key = KeyPair::generate().unwrap();
                    params.self_signed(&key).unwrap().der().to_vec()
                })
                .clone();
            for (at, byte) in edits {
                let at = at.index(der.len());
                der[at] = byte;
            }
            if let Some(found) = Certificate::of(&der) {
                let _text = found.to_string();
            }
        }
    }
}
