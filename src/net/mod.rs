//! Sockets: listening, dialling, options, and what the kernel knows of a connection.

pub mod handover;
pub mod leg;
pub mod listen;
pub mod options;
pub mod sample;
pub mod stream;
