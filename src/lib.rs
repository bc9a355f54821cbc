//! pulsegate: a layer-4 (TCP) reverse proxy that enforces liveness in front of legacy services.
//!
//! Reading order, from the bottom: [`liveness`] decides (pure), [`heartbeat`] asks applications (pure),
//! [`sys`] touches the kernel (the only `unsafe`), [`net`] and [`relay`] hold and move bytes, [`tls`] wraps
//! them, [`upstream`] dials services, [`config`] reads the file, [`host`] reads what bounds the promise on
//! this machine, [`session`] ties one connection pair together, [`server`] accepts, [`admin`] answers
//! operators, [`app`] composes. [`scan`] and [`guard`] judge connections of other processes, [`cli`] starts
//! all of it.

pub mod admin;
pub mod app;
pub mod cli;
pub mod config;
pub mod demo;
pub mod exit;
pub mod guard;
pub mod heartbeat;
pub mod host;
pub mod lifecycle;
pub mod liveness;
pub mod metrics;
pub mod net;
pub mod proxy_protocol;
pub mod relay;
pub mod scan;
pub mod server;
pub mod session;
pub mod sys;
pub mod telemetry;
pub mod tls;
pub mod upstream;
pub mod view;
