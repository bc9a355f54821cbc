//! The image: what `.dockerignore` lets through is built as the Dockerfile says.
//!
//! No registry is asked. The Dockerfile is built for real, by buildah, upon a stand-in for the official
//! Rust image: an empty one, into which the toolchain of this machine is mounted. The crates are those that this
//! machine has fetched.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::podman::Storage;
use super::tools::{Case, Running, before, free_address, read, repo, run, scratch};

pub const CASES: &[Case] = &[
    Case::new(
        "the_image_is_small_and_unprivileged",
        &[],
        the_image_is_small_and_unprivileged,
    ),
    Case::new(
        "the_health_check_follows_the_configuration",
        &[],
        the_health_check_follows_the_configuration,
    ),
    Case::new(
        "buildah_builds_the_image",
        &["buildah"],
        buildah_builds_the_image,
    )
    .that_mounts(),
];

const PT_INTERP: usize = 3;

/// Of the one layer, in bytes.
const SMALL: u64 = 10_000_000;

fn the_image_is_small_and_unprivileged() {
    let text = read("deploy/docker/Dockerfile");
    let (_, last_stage) = text
        .split_once("\nFROM scratch\n")
        .expect("the last stage is scratch");
    assert!(!last_stage.contains("\nFROM "), "{last_stage}");
    let copies = last_stage.lines().filter(|line| line.starts_with("COPY"));
    assert_eq!(copies.count(), 2, "the binary, and licences");
    for line in [
        "USER 65532:65532",
        "STOPSIGNAL SIGTERM",
        r#"ENTRYPOINT ["/pulsegate"]"#,
        r#"  CMD ["/pulsegate", "healthcheck", "--pid", "1"]"#,
    ] {
        assert!(last_stage.lines().any(|l| l == line), "{line}");
    }
    let rust_version = env!("CARGO_PKG_RUST_VERSION");
    assert!(
        text.contains(&format!("ARG RUST_IMAGE=rust:{rust_version}-")),
        "not {rust_version}"
    );
}

/// By the file or the flags that the process was started with; where `admin` is off, nobody is asked.
fn the_health_check_follows_the_configuration() {
    let dockerfile = read("deploy/docker/Dockerfile");
    let words = dockerfile.split("  CMD [").nth(1).unwrap();
    let words: Vec<String> =
        serde_json::from_str(&format!("[{}", words.lines().next().unwrap())).unwrap();
    assert_eq!(
        (&*words[0], words.last().map(String::as_str)),
        ("/pulsegate", Some("1"))
    );
    let healthy = |running: &Running| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pulsegate"));
        command
            .args(&words[1..words.len() - 1])
            .arg(running.0.id().to_string());
        run(&mut command)
    };
    let admin = free_address();
    let by_flags = Running::start(&before(&["--admin", &admin.to_string()]));
    by_flags.wait_for(admin);
    healthy(&by_flags).unwrap();

    let in_file = free_address();
    let text = format!(
        "listeners: [{{ address: '127.0.0.1:0', upstream: {{ address: '127.0.0.1:1' }} }}]\n\
         admin: {{ address: '{in_file}' }}\n"
    );
    let file = scratch("health", "pulsegate.yaml", &text)
        .display()
        .to_string();
    let by_file = Running::start(&["--config".to_owned(), file.clone()]);
    by_file.wait_for(in_file);
    healthy(&by_file).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_pulsegate"));
    run(command.args(["healthcheck", "-c", &file])).unwrap();

    let (client, flags) = (free_address(), ["--admin", "off"]);
    let mut flags = before(&flags);
    flags[1] = client.to_string();
    let off = Running::start(&flags);
    off.wait_for(client);
    assert!(healthy(&off).unwrap().contains("admin is off"));

    // It does not answer: stopped.
    let pid = rustix::process::Pid::from_child(&by_flags.0);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    assert!(
        healthy(&by_flags)
            .unwrap_err()
            .contains("no answer in time")
    );
    let mut command = Command::new(env!("CARGO_BIN_EXE_pulsegate"));
    let own = std::process::id().to_string();
    let error = run(command.args(["healthcheck", "--pid", &own])).unwrap_err();
    assert!(error.contains("is no `pulsegate run`"), "{error}");
}

/// An empty folder for this file's tests, and the one where their builds are kept from run to run.
fn folders(test: &str) -> (PathBuf, PathBuf) {
    let base = scratch("image", "marker", "").parent().unwrap().to_owned();
    let (own, target) = (base.join(test), base.join(format!("{test}-target")));
    fs::remove_dir_all(&own).ok();
    fs::create_dir_all(&own).unwrap();
    fs::create_dir_all(&target).unwrap();
    (own, target)
}

/// One binary that needs nothing else.
fn check_binary(path: &Path) {
    let version = run(Command::new(path).arg("--version")).unwrap();
    assert_eq!(
        version.trim(),
        concat!("pulsegate ", env!("CARGO_PKG_VERSION"))
    );
    // The program headers of a 64-bit ELF file: none asks for a loader.
    let bytes = fs::read(path).unwrap();
    let number = |at: usize, size: usize| {
        let bytes = bytes[at..at + size].iter().rev();
        bytes.fold(0, |n, byte| n << 8 | usize::from(*byte))
    };
    let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    assert!((1..100).contains(&count));
    for header in 0..count {
        assert_ne!(
            number(table + header * size, 4),
            PT_INTERP,
            "it is not static"
        );
    }
}

/// Its storage in a folder of the test.
struct Buildah(Storage);

impl Buildah {
    fn ask(&self, words: &[&str]) -> Result<String, String> {
        let mut command = self.0.command("buildah");
        command.args(words).current_dir(repo(""));
        run(&mut command).map(|text| text.trim().to_owned())
    }

    /// The stand-in for the Rust image that the Dockerfile names.
    fn make_base(&self, image: &str) {
        let container = self.ask(&["from", "scratch"]).unwrap();
        let root = PathBuf::from(self.ask(&["mount", &container]).unwrap());
        for name in ["usr", "etc", "tmp", "root", "proc", "sys", "dev", "src"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        for name in ["bin", "sbin", "lib", "lib64"] {
            if Path::new("/").join(name).is_symlink() {
                symlink(format!("usr/{name}"), root.join(name)).unwrap();
            }
        }
        // `cc` is found by way of them.
        run(Command::new("cp")
            .args(["-a", "/etc/alternatives"])
            .arg(root.join("etc")))
        .unwrap();
        self.ask(&["umount", &container]).unwrap();
        let mut words = vec!["config".to_owned()];
        for (name, value) in [
            ("CARGO_HOME", "/root/cargo"),
            ("CARGO_NET_OFFLINE", "true"),
            ("PATH", "/root/rust/bin:/usr/bin:/usr/sbin"),
        ] {
            words.extend(["--env".to_owned(), format!("{name}={value}")]);
        }
        words.push(container.clone());
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.ask(&words).unwrap();
        self.ask(&["commit", "--quiet", "--rm", &container, image])
            .unwrap();
    }
}

/// The image `built`, where it is; it is built once for all tests of this process.
pub fn built() -> Storage {
    static BUILT: OnceLock<Storage> = OnceLock::new();
    BUILT.get_or_init(build).clone()
}

fn build() -> Storage {
    let (dir, target) = folders("buildah");
    let buildah = Buildah(Storage::new(dir));
    let dockerfile = read("deploy/docker/Dockerfile");
    let image = dockerfile
        .split("ARG RUST_IMAGE=")
        .nth(1)
        .expect("an image");
    let image = image.lines().next().unwrap();
    buildah.make_base(&format!("docker.io/library/{image}"));

    let rust = run(Command::new("rustc").args(["--print", "sysroot"])).unwrap();
    let cargo = std::env::var("CARGO_HOME").unwrap_or_else(|_| {
        let home = std::env::var("HOME").expect("a home");
        format!("{home}/.cargo")
    });
    let volumes = [
        "/usr:/usr:ro".to_owned(),
        format!("{}:/root/rust:ro", rust.trim()),
        format!("{cargo}/registry:/root/cargo/registry"),
        format!("{}:/src/target", target.display()),
    ];
    let mut words = vec![
        "bud",
        "--pull-never",
        "--isolation",
        "chroot",
        "--format",
        "docker",
    ];
    words.extend(volumes.iter().flat_map(|volume| ["--volume", volume]));
    words.extend(["--tag", "built", "--file", "deploy/docker/Dockerfile", "."]);
    buildah.ask(&words).unwrap();
    buildah.0
}

fn buildah_builds_the_image() {
    let buildah = Buildah(built());
    let about = buildah
        .ask(&["inspect", "--type", "image", "built"])
        .unwrap();
    let about: serde_json::Value = serde_json::from_str(&about).unwrap();
    let config = &about["Docker"]["config"];
    assert_eq!(config["User"], "65532:65532");
    assert_eq!(config["Entrypoint"][0], "/pulsegate");
    assert_eq!(config["StopSignal"], "SIGTERM");
    for name in [
        "title",
        "description",
        "source",
        "licenses",
        "version",
        "revision",
    ] {
        let label = &config["Labels"][format!("org.opencontainers.image.{name}")];
        assert!(label.is_string(), "{name}: {label}");
    }
    let words = ["CMD", "/pulsegate", "healthcheck", "--pid", "1"];
    assert_eq!(config["Healthcheck"]["Test"], serde_json::json!(words));

    let container = buildah.ask(&["from", "--pull-never", "built"]).unwrap();
    let root = PathBuf::from(buildah.ask(&["mount", &container]).unwrap());
    let list = |folder: &Path| {
        let files = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = files.map(|f| f.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(list(&root), ["licenses", "pulsegate"]);
    let licences = ["LICENSE-APACHE", "LICENSE-MIT", "THIRD-PARTY-LICENSES"];
    assert_eq!(list(&root.join("licenses")), licences);
    check_binary(&root.join("pulsegate"));
    let size = fs::metadata(root.join("pulsegate")).unwrap().len();
    assert!(size < SMALL, "{size} bytes");
    // With nothing beside it, as the user that the image names.
    let words = [
        "run",
        "--isolation",
        "chroot",
        &container,
        "/pulsegate",
        "schema",
    ];
    assert!(
        buildah
            .ask(&words)
            .unwrap()
            .contains("pulsegate configuration")
    );
    buildah.ask(&["rm", &container]).unwrap();
}
