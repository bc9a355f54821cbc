//! The configuration in force, as YAML that [`super::load`] reads back.

use std::fmt::Write;
use std::time::Duration;

use super::{Config, ListenerConfig, show};

/// Every key, defaults filled in.
#[must_use]
pub fn to_yaml(config: &Config) -> String {
    let mut text = "listeners:\n".to_owned();
    for listener in &config.listeners {
        text += &listener_yaml(listener);
    }
    match &config.admin {
        Some(admin) => line(
            &mut text,
            0,
            &format!("admin: {{ address: \"{}\" }}", admin.address),
        ),
        None => line(&mut text, 0, "admin: off"),
    }
    line(&mut text, 0, "limits:");
    line(&mut text, 1, &format!("memory: {}", config.limits.memory));
    line(&mut text, 0, "drain:");
    line(
        &mut text,
        1,
        &format!("delay: {}", show(config.drain.delay)),
    );
    line(
        &mut text,
        1,
        &format!("timeout: {}", show(config.drain.timeout)),
    );
    line(&mut text, 0, "log:");
    line(&mut text, 1, &format!("level: {}", config.log.level));
    line(&mut text, 1, &format!("format: {}", config.log.format));
    line(&mut text, 1, &format!("access: {}", config.log.access));
    line(&mut text, 0, "relay:");
    let low_water = config.relay.low_water;
    line(&mut text, 1, &format!("low_water: {low_water}"));
    let workers = config
        .workers
        .map_or_else(|| "auto".to_owned(), |n| n.to_string());
    line(&mut text, 0, &format!("workers: {workers}"));
    text
}

fn listener_yaml(listener: &ListenerConfig) -> String {
    let off = |span: Option<Duration>| show(span.unwrap_or_default());
    let liveness = &listener.liveness;
    let limit = listener
        .limits
        .max_connections
        .map_or_else(|| "none".to_owned(), |n| n.to_string());
    let mut text = format!("  - name: \"{}\"\n", listener.name);
    let mut key = |depth: usize, key: &str, value: &str| {
        line(&mut text, depth + 2, &format!("{key}: {value}"));
    };
    key(0, "address", &format!("\"{}\"", listener.address));
    key(0, "backlog", &listener.backlog.to_string());
    key(0, "upstream", "");
    key(1, "address", &format!("\"{}\"", listener.upstream.address));
    key(
        1,
        "connect_timeout",
        &show(listener.upstream.connect_timeout),
    );
    key(
        1,
        "resolve_interval",
        &show(listener.upstream.resolve_interval),
    );
    key(0, "liveness", "");
    key(1, "detect_within", &show(liveness.detect_within));
    key(1, "probe_interval", &show(liveness.probe_interval));
    key(1, "probes", "");
    key(2, "downstream", &liveness.probes[0].to_string());
    key(2, "upstream", &liveness.probes[1].to_string());
    key(1, "idle_timeout", &off(liveness.idle_timeout));
    key(1, "half_close_timeout", &off(liveness.half_close_timeout));
    key(1, "stall_timeout", &off(liveness.stall_timeout));
    key(1, "delivery_timeout", &off(liveness.delivery_timeout));
    key(
        1,
        "first_response_timeout",
        &off(liveness.first_response_timeout),
    );
    key(
        1,
        "max_connection_duration",
        &off(liveness.max_connection_duration),
    );
    key(1, "on_dead", liveness.on_dead.as_str());
    key(1, "on_end", liveness.on_end.as_str());
    key(0, "limits", "");
    key(1, "max_connections", &limit);
    key(1, "on_full", listener.limits.on_full.as_str());
    key(1, "queue_timeout", &off(listener.limits.queue_timeout));
    key(1, "abandoned", listener.limits.abandoned.as_str());
    key(1, "reconnect_delay", &show(listener.limits.reconnect_delay));
    text
}

fn line(text: &mut String, depth: usize, content: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "{:indent$}{}",
        "",
        content.trim_end(),
        indent = depth * 2
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_read_back() {
        let text = b"
listeners:
  - { name: a, address: '[::1]:9000', upstream: { address: 'db.local:5432' } }
  - address: 127.0.0.1:9001
    upstream: { address: 127.0.0.1:1, connect_timeout: 1500ms, resolve_interval: 7s }
    liveness: { detect_within: 7s, stall_timeout: 30s, idle_timeout: 0s, on_dead: close, on_end: close }
    limits: { max_connections: 3 }
admin: off
limits: { memory: 96MiB }
relay: { low_water: false }
workers: 3
";
        let config = crate::config::load("test", text).unwrap();
        let printed = to_yaml(&config);
        assert_eq!(
            crate::config::load("printed", printed.as_bytes()),
            Ok(config),
            "{printed}"
        );
    }
}
