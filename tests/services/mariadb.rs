//! MariaDB and its client.

use std::net::SocketAddr;
use std::process::Command;

use crate::process::{Account, Folder, Process, free_address, tool};

/// What a test of it needs.
pub const SERVER: &[&str] = &["mariadbd", "mariadb"];

/// A MariaDB of the test's own. It has no accounts: whoever comes may do everything.
pub struct MariaDb {
    process: Process,
    _folder: Folder,
    pub address: SocketAddr,
}

impl MariaDb {
    pub fn start() -> Self {
        let (folder, address) = (Folder::new(), free_address());
        let account = Account::of(&["mysql", "nobody"]);
        account.owns(folder.path());
        let mut command = tool("mariadbd");
        command
            .args([
                "--no-defaults",
                "--skip-grant-tables",
                "--skip-name-resolve",
            ])
            .args(["--bind-address", &address.ip().to_string()])
            .args(["--port", &address.port().to_string()])
            .arg("--datadir")
            .arg(folder.path())
            .arg("--socket")
            .arg(folder.join("socket"))
            .arg("--pid-file")
            .arg(folder.join("pid"));
        account.runs(&mut command);
        let mut process = Process::start(&mut command);
        process.wait_until(|said| said.contains("ready for connections"));
        Self {
            process,
            _folder: folder,
            address,
        }
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }
}

/// Its client, that prints rows as they come.
pub fn mariadb(to: SocketAddr) -> Command {
    let mut command = tool("mariadb");
    command
        .args(["--no-defaults", "--skip-ssl", "--batch", "--unbuffered"])
        .args(["-u", "root", "-h", &to.ip().to_string()])
        .args(["-P", &to.port().to_string()]);
    command
}
