//! Manual pages, one for each subcommand, and completions for shells: made of the flags that the program reads.

use std::fs;
use std::io;
use std::path::Path;

use clap_complete::Shell;

const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Fish, Shell::Zsh];

/// Writes them into a directory, which is made.
///
/// # Errors
/// The first file that could not be written.
pub fn write(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let mut command = pulsegate::cli::command();
    clap_mangen::generate_to(command.clone(), directory)?;
    for shell in SHELLS {
        clap_complete::generate_to(shell, &mut command, "pulsegate", directory)?;
    }
    Ok(())
}
