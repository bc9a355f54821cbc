{{/* The keys of the configuration file that a listener and `config` may have here; a test holds them against `pulsegate
schema`. `config.defaults` has those of a listener. */}}
{{- define "pulsegate.configKeys" -}}
listener:
  access: {allow, deny}
  backlog:
  limits: {abandoned, burst_per_source, first_byte_timeout, max_connections, max_connections_per_source,
    on_full, queue_timeout, rate_per_source, reconnect_delay, source_prefix_ipv4, source_prefix_ipv6}
  liveness: {delivery_timeout, detect_within, first_response_timeout, half_close_timeout, heartbeat: {after,
    expect, failures, frame: {adjust, delimiter, header, kind, offset, order, size}, id: {offset, size}, leg,
    modbus: {register, unit}, profile, send, timeout}, idle_timeout, max_connection_duration, nat_timeout,
    on_dead, on_end, probe_interval, probes: {downstream, upstream}, receive_timeout: {downstream, upstream},
    stall_timeout}
  name:
  proxy_protocol:
  proxy_protocol_timeout:
  proxy_protocol_trusted:
  tls: {alpn, certificates: {certificate, key}, client_auth, client_ca, handshake_timeout, min_version, sni}
  upstream: {address, balance, check: {expect, fall, interval, kind, on_down, path, port, rise, send, status,
    timeout}, connect_retry, connect_timeout, dial, ejection: {failures, for}, endpoints: {address},
    proxy_protocol, resolve_interval, source_address, tls: {alpn, ca, certificate, key, min_version,
    server_name}, when_down}
config:
  admin: {ready, tls: {certificate, key}, token_file}
  drain: {delay, timeout}
  limits: {memory}
  log: {access, format, level}
  relay: {low_water}
  reload: {watch}
  workers:
{{- end -}}

{{/* Refuses (dict "what" WHERE "map" MAP "keys" KEYS) if there is a key, here or deeper, that is none of KEYS. Values are
judged by pulsegate when it starts. */}}
{{- define "pulsegate.onlyKeys" -}}
{{- $known := keys .keys | sortAlpha | join ", " -}}
{{- if kindIs "slice" .map -}}
{{- range $n, $item := .map -}}
{{- include "pulsegate.onlyKeys" (dict "what" (printf "%s[%d]" $.what $n) "map" (default "null" $item) "keys" $.keys) -}}
{{- end -}}
{{- else if kindIs "map" .map -}}
{{- range $key, $value := .map -}}
{{- $what := list $.what $key | compact | join "." -}}
{{- if not (hasKey $.keys $key) -}}
{{- fail (printf "pulsegate: unknown key %s; there are %s" $what $known) -}}
{{- end -}}
{{- if kindIs "map" (get $.keys $key) -}}
{{- include "pulsegate.onlyKeys" (dict "what" $what "map" $value "keys" (get $.keys $key)) -}}
{{- end -}}
{{- end -}}
{{- else if not (or (kindIs "invalid" .map) (and (regexMatch "[.](tls|id)$" .what) (has (toString .map) (list "off" "false")))) -}}
{{- fail (printf "pulsegate: %s is %v; it has keys of its own: %s" .what .map $known) -}}
{{- end -}}
{{- end -}}
