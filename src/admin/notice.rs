//! Where a running process can be asked, as it says itself: in a file in memory that the subcommands find among
//! its descriptors. Its command line and its configuration file cannot tell: the file may have changed since.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::geteuid;
use rustls::pki_types::CertificateDer;

use crate::config::{Admin, ControlAddress};

const NAME: &str = "pulsegate-admin";
/// How /proc/PID/fd shows it (proc_pid_fd(5)).
const LINK: &str = "/memfd:pulsegate-admin (deleted)";
/// Two addresses, a path and a certificate are shorter.
const LONGEST: u64 = 256 * 1024;
/// Marks the line that is no address.
const TOKEN_FILE: &str = "token_file:";
/// Marks an address that has a certificate, which is behind it.
const HTTPS: &str = "https://";

/// The addresses of an endpoint, none where it is off, and what helps to use them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notice {
    /// In the order in which they are tried.
    pub places: Vec<Place>,
    /// The token is for whoever can read it.
    pub token_file: Option<PathBuf>,
}

/// An address of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where it is.
    pub address: ControlAddress,
    /// That of the server, where it speaks HTTPS.
    pub certificate: Option<CertificateDer<'static>>,
}

impl Notice {
    /// Changes are accepted at the control address, so it comes first. `certificate` is that of the address
    /// which speaks HTTPS.
    #[must_use]
    pub fn new(admin: Admin, certificate: Option<CertificateDer<'static>>) -> Self {
        let control = admin.control.map(|address| Place {
            address,
            certificate: None,
        });
        let address = Place {
            address: ControlAddress::Tcp(admin.address),
            certificate,
        };
        Self {
            places: control.into_iter().chain([address]).collect(),
            token_file: admin.token_file,
        }
    }

    /// Has this process say so, as long as the file is open.
    ///
    /// # Errors
    /// The system makes no such file.
    pub fn post(&self) -> io::Result<File> {
        // Linux 6.3 can be told to insist on the seal; older ones do not know it.
        let make = |more| memfd_create(NAME, MemfdFlags::CLOEXEC | more);
        let made = make(MemfdFlags::NOEXEC_SEAL).or_else(|_| make(MemfdFlags::empty()));
        let mut posted = File::from(made?);
        posted.write_all(self.text()?.as_bytes())?;
        Ok(posted)
    }

    /// One line for each address, with the certificate where there is one, and one for the file.
    fn text(&self) -> io::Result<String> {
        let lines = self.places.iter().map(Place::line);
        let mut text: String = lines.collect();
        if let Some(file) = &self.token_file {
            // The reader works in another folder.
            let file = std::path::absolute(file)?;
            text += &format!("{TOKEN_FILE}{}\n", file.display());
        }
        Ok(text)
    }

    /// What the process with this id says; where the token is, only of a process of the same user.
    ///
    /// # Errors
    /// In one line: it is no pulsegate, or it may not be asked.
    pub fn of(pid: u32) -> Result<Self, String> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::PermissionDenied => format!(
                "process {pid}: its descriptors may not be read, as it is another user's or has more capabilities: \
                 use --admin ADDR"
            ),
            _ => format!("process {pid}: {error}"),
        };
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).map_err(failed)?;
        let mut paths = descriptors.flatten().map(|descriptor| descriptor.path());
        let is_notice = |path: &PathBuf| fs::read_link(path).is_ok_and(|to| to == Path::new(LINK));
        let path = paths.find(is_notice);
        let path =
            path.ok_or_else(|| format!("process {pid} is no `pulsegate run` that serves"))?;
        let mut text = String::new();
        let file = File::open(path).map_err(failed)?;
        file.take(LONGEST)
            .read_to_string(&mut text)
            .map_err(failed)?;
        let mut notice = Self::parse(&text)
            .ok_or_else(|| format!("process {pid} is another version: use --admin ADDR"))?;
        // Another user's process must not choose a file that its reader sends to it. The folder belongs to
        // the effective user of the process (proc_pid(5)).
        let owner = fs::metadata(format!("/proc/{pid}")).map_err(failed)?.uid();
        notice.token_file.take_if(|_| owner != geteuid().as_raw());
        Ok(notice)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut notice = Self::default();
        for line in text.lines() {
            if let Some(file) = line.strip_prefix(TOKEN_FILE) {
                notice.token_file = Some(file.into());
            } else {
                notice.places.push(Place::parse(line)?);
            }
        }
        Some(notice)
    }
}

impl Place {
    fn line(&self) -> String {
        let address = &self.address;
        match &self.certificate {
            Some(der) => {
                let digits = der.iter().map(|byte| format!("{byte:02x}"));
                format!("{HTTPS}{address} {}\n", digits.collect::<String>())
            }
            None => format!("{address}\n"),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        let (address, certificate) = match line.strip_prefix(HTTPS) {
            Some(rest) => {
                let (address, digits) = rest.split_once(' ')?;
                (address, Some(bytes(digits)?.into()))
            }
            None => (line, None),
        };
        let address = match address.strip_prefix("unix:") {
            Some(path) => ControlAddress::Unix(path.into()),
            None => ControlAddress::Tcp(address.parse().ok()?),
        };
        Some(Self {
            address,
            certificate,
        })
    }
}

fn bytes(digits: &str) -> Option<Vec<u8>> {
    let pairs = digits.as_bytes().chunks(2).map(str::from_utf8);
    let bytes = pairs.map(|pair| u8::from_str_radix(pair.ok()?, 16).ok());
    bytes.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let place = |address, certificate| Place {
            address,
            certificate,
        };
        let address = ControlAddress::Tcp("[::1]:9900".parse().expect("valid"));
        let notice = Notice {
            places: vec![
                place(ControlAddress::Unix("/run/a b/c.sock".into()), None),
                place(address.clone(), Some(vec![0, 0x30, 0xff].into())),
                place(address, None),
            ],
            token_file: Some("/run/token".into()),
        };
        for notice in [notice, Notice::default()] {
            let text = notice.text().expect("written");
            assert_eq!(Notice::parse(&text), Some(notice));
        }
        for wrong in [
            "something else\n",
            "https://[::1]:1\n",
            "https://[::1]:1 3x\n",
        ] {
            assert_eq!(Notice::parse(wrong), None, "{wrong}");
        }
    }
}
