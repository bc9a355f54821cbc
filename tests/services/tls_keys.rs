//! Certificates and keys as openssl(1) makes them.

use std::fs;
use std::process::Command;

use crate::Case;
use crate::process::Folder;
use crate::support::certificates::Subject;
use crate::tls::{Keys, Setup, echo, expect_talk, s_client};

pub const CASES: &[Case] = &[
    Case::new(
        "what_openssl_makes_can_be_used",
        &["openssl"],
        what_openssl_makes_can_be_used,
    ),
    Case::new(
        "openssl_is_given_a_key_that_it_understands",
        &["openssl"],
        openssl_is_given_a_key_that_it_understands,
    ),
];

const SUPPORTED: &str = "its key cannot be used; RSA of 2048 bits and more, ECDSA P-256 and P-384, and Ed25519 are \
                         supported";

/// RSA behind ECDSA, for the same name.
fn openssl_is_given_a_key_that_it_understands() {
    let (_runtime, service) = echo();
    let setup = Setup::new();
    let rsa = setup.certify("rsa", Subject::named(&["localhost"]).with_rsa_key());
    let certificates = format!("certificates: [{}, {}]", setup.server.yaml(), rsa.yaml());
    let keys = Keys {
        tls: Some(certificates),
        ..Keys::default()
    };
    let proxy = setup.start(service, keys);
    let (ecdsa, rsa) = ("ecdsa_secp256r1_sha256", "rsa_pss_rsae_sha256");
    for version in ["-tls1_2", "-tls1_3"] {
        for (understood, given) in [
            (ecdsa.to_owned(), "ECDSA"),
            (rsa.to_owned(), "RSA-PSS"),
            (format!("{rsa}:{ecdsa}"), "ECDSA"),
        ] {
            let asks = [version, "-servername", "localhost", "-sigalgs", &understood];
            let given = format!("Peer signature type: {given}");
            expect_talk(&mut s_client(&setup, proxy.address, &asks), &[&given]);
        }
    }
}

/// The authority of the documentation, and all kinds of keys.
fn what_openssl_makes_can_be_used() {
    let folder = Folder::new();
    let docs = include_str!("../../docs/TLS.md");
    let example = |name: &str| {
        let (_, rest) = docs
            .split_once(&format!("<!-- example: {name} -->\n"))
            .expect("there");
        let (_, rest) = rest.split_once('\n').expect("a fence");
        rest.split_once("\n```").expect("an end").0.to_owned()
    };
    let sh = |script: &str| {
        let mut command = Command::new("sh");
        let command = command.args(["-euc", script]).current_dir(folder.path());
        let output = command.output().expect("a shell");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    let check = |code: i32| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pulsegate"));
        let output = command
            .args(["check", "--config", "pulsegate.yaml"])
            .current_dir(folder.path())
            .output()
            .expect("it runs");
        let said =
            [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
        assert_eq!(output.status.code(), Some(code), "{said:?}");
        said.concat()
    };
    sh(&example("authority"));
    fs::write(folder.join("pulsegate.yaml"), example("pulsegate.yaml")).expect("written");
    let said = check(0);
    assert!(
        said.contains("certificate server.crt: orders.example, issued by Test authority, "),
        "{said}"
    );
    assert!(
        said.contains("certificate client.crt: client7.example, issued by Test authority, "),
        "{said}"
    );
    let kinds = [
        (
            "genrsa -traditional -out server.key 2048",
            "RSA PRIVATE KEY",
        ),
        (
            "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:3072 -out server.key",
            "PRIVATE KEY",
        ),
        (
            "ecparam -name prime256v1 -genkey -out server.key",
            "EC PRIVATE KEY",
        ),
        (
            "ecparam -name secp384r1 -genkey -noout -out server.key",
            "EC PRIVATE KEY",
        ),
        ("genpkey -algorithm ed25519 -out server.key", "PRIVATE KEY"),
    ];
    for (make, label) in kinds {
        sh(&format!(
            "openssl {make}; grep -q -e '-----BEGIN {label}-----' server.key
             openssl req -x509 -key server.key -subj /CN=orders -days 9 -out server.crt"
        ));
        assert!(
            check(0).contains("certificate server.crt: orders, issued by orders, "),
            "{make}"
        );
    }
    for (make, wrong) in [
        ("openssl genrsa -out server.key 1024", SUPPORTED),
        (
            "openssl ecparam -name secp521r1 -genkey -noout -out server.key",
            SUPPORTED,
        ),
        (
            "openssl genpkey -algorithm ed448 -out server.key",
            SUPPORTED,
        ),
        (
            "openssl genrsa -aes128 -passout pass:x -traditional -out server.key 2048",
            "its key is encrypted",
        ),
        (
            "openssl genrsa -aes128 -passout pass:x -out server.key 2048",
            "its key is encrypted",
        ),
        (
            "openssl genpkey -algorithm ed25519 -out server.key",
            "does not fit the first certificate",
        ),
        (
            "openssl pkey -in client.key -outform der -out server.key",
            "turns into PEM",
        ),
        ("mkfifo fifo; mv fifo server.key", "is not a regular file"),
    ] {
        sh(&format!("rm -f server.key; {make}"));
        let said = check(2);
        assert!(
            said.contains(": listeners[orders].tls.certificates[0].key: server.key: "),
            "{said}"
        );
        assert!(said.contains(wrong), "{make}: {said}");
    }
}
