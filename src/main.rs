//! The pulsegate binary.

use std::process::ExitCode;

/// ARCHITECTURE.md says why.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    pulsegate::cli::main()
}
