//! Writes what packages ship beside the binary: `cargo run --example manual -- DIRECTORY`.

mod pages;

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(directory) = std::env::args_os().nth(1) else {
        eprintln!("manual: give the directory to write to");
        return ExitCode::from(2);
    };
    match pages::write(Path::new(&directory)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("manual: {}: {error}", directory.display());
            ExitCode::FAILURE
        }
    }
}
