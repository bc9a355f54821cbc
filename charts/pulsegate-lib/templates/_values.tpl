{{/* What is used where `config` says nothing. */}}
{{- define "pulsegate.defaults" -}}
# The ConfigMap; default: RELEASE-pulsegate. Several workloads of one chart need different names.
name: ""
image:
  registry: ghcr.io
  repository: pulsegate/pulsegate
  tag: "0.1.0"
  digest: ""
  pullPolicy: IfNotPresent
sidecar:
  # true: an init container with restartPolicy Always. false: a container beside the application.
  native: true
# Each: name, port (where pulsegate listens), appPort (where the application does), servicePort (what clients use;
# default: appPort), and any key of a listener of the configuration file.
listeners: []
# The rest of the configuration file.
config:
  drain:
    delay: 5s
    timeout: 25s
  log:
    format: json
admin:
  port: 9900
# How long the application takes to stop.
appStopSeconds: 10
# How the application's preStop hook sleeps. sleep: Kubernetes itself (1.30 and later). exec: `sleep` of the
# application's image. auto: by the version of the cluster.
appPreStop: auto
# Secrets, each mounted at /etc/pulsegate-tls/NAME.
tlsSecrets: []
resources:
  requests:
    cpu: 20m
    memory: 32Mi
  limits:
    memory: 256Mi
# "restricted"; the Pod needs runAsNonRoot only if its own containers have it.
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: ["ALL"]
  seccompProfile:
    type: RuntimeDefault
{{- end -}}

{{/* The values of one sidecar, as JSON: those of `config` over the defaults. What cannot be is refused. */}}
{{- define "pulsegate.values" -}}
{{- $defaults := include "pulsegate.defaults" . | fromYaml -}}
{{- $config := include "pulsegate.configKeys" . | fromYaml -}}
{{- $known := deepCopy $defaults -}}
{{- $_ := set $config.config "defaults" (deepCopy $config.listener) -}}
{{- range list "port" "appPort" "servicePort" -}}{{- $_ := set $config.listener . "" -}}{{- end -}}
{{- $_ := set (set $known "config" $config.config) "listeners" $config.listener -}}
{{- $_ := set $known "resources" (dict "requests" "" "limits" "" "claims" "") -}}
{{- range list "appArmorProfile" "capabilities" "privileged" "procMount" "seLinuxOptions" "seccompProfile" -}}
{{- $_ := set $known.securityContext . "" -}}
{{- end -}}
{{- $given := deepCopy (default (dict) .config) -}}
{{- include "pulsegate.onlyKeys" (dict "what" "" "map" $given "keys" $known) -}}
{{- range $key, $value := $given -}}
{{- /* null is the default. */ -}}
{{- if kindIs "invalid" $value -}}
{{- $_ := unset $given $key -}}
{{- else if ne (kindIs "slice" $value) (kindIs "slice" (get $defaults $key)) -}}
{{- fail (printf "pulsegate: %s is %s" $key (kindIs "slice" $value | ternary "no list" "a list: begin each item with \"- \"")) -}}
{{- end -}}
{{- end -}}
{{- $values := mergeOverwrite $defaults $given -}}
{{- range prepend $values.tlsSecrets ($values.name | default "a") -}}
{{- if not (and (kindIs "string" .) (regexMatch "^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$" .)) -}}
{{- fail (printf "pulsegate: name, tlsSecrets: %v is no name of a ConfigMap or Secret: it is text of lower-case letters, digits, \"-\" and \".\"" .) -}}
{{- end -}}
{{- end -}}
{{- if not (regexMatch "^[0-9]+$" (toString $values.appStopSeconds)) -}}
{{- fail (printf "pulsegate: appStopSeconds: %v; it is a whole number of seconds, such as 10" $values.appStopSeconds) -}}
{{- end -}}
{{- range $key := list "registry" "repository" "tag" "digest" -}}
{{- if not (kindIs "string" (get $values.image $key)) -}}
{{- fail (printf "pulsegate: image.%s: %v is no text; quote it" $key (get $values.image $key)) -}}
{{- end -}}
{{- end -}}
{{- if and $values.image.registry (regexMatch "^([^/]*[.:][^/]*|localhost)/" $values.image.repository) -}}
{{- fail (printf "pulsegate: image.repository: %s begins with a registry, and image.registry is %s, so no node could pull it; set image.registry: %s, or \"\"" $values.image.repository $values.image.registry (splitList "/" $values.image.repository | first)) -}}
{{- end -}}
{{- if contains ":" (splitList "/" $values.image.repository | last) -}}
{{- fail (printf "pulsegate: image.repository: %s has a tag; set image.tag in its place" $values.image.repository) -}}
{{- end -}}
{{- if not (has $values.image.pullPolicy (list "Always" "IfNotPresent" "Never")) -}}
{{- fail (printf "pulsegate: image.pullPolicy: %v; it is Always, IfNotPresent or Never" $values.image.pullPolicy) -}}
{{- end -}}
{{- if ne (len $values.tlsSecrets) (len (uniq $values.tlsSecrets)) -}}
{{- fail (printf "pulsegate: tlsSecrets: one is there twice: %s" (join ", " $values.tlsSecrets)) -}}
{{- end -}}
{{- if not (and (ge (int $values.admin.port) 1024) (le (int $values.admin.port) 65535)) -}}
{{- fail (printf "pulsegate: admin.port is %v; it is from 1024 to 65535" $values.admin.port) -}}
{{- end -}}
{{- if not (kindIs "bool" $values.sidecar.native) -}}
{{- fail "pulsegate: sidecar.native is true or false" -}}
{{- end -}}
{{- if not (has $values.appPreStop (list "auto" "sleep" "exec")) -}}
{{- fail (printf "pulsegate: appPreStop: %v; it is auto, sleep or exec" $values.appPreStop) -}}
{{- end -}}
{{- if not $values.listeners -}}
{{- fail "pulsegate: listeners: at least one is needed, such as {name: orders, port: 9000, appPort: 8080}" -}}
{{- end -}}
{{- $names := dict -}}
{{- $ports := dict (int $values.admin.port | toString) "admin.port" -}}
{{- $servicePorts := dict -}}
{{- range $values.listeners -}}
{{- if not (kindIs "string" .name) -}}
{{- fail (printf "pulsegate: listeners: the name %v is no text; give one, or quote it" .name) -}}
{{- end -}}
{{- if not (regexMatch "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$" (toString .name)) -}}
{{- fail (printf "pulsegate: listeners: the name %v: a name has lower-case letters, digits and \"-\"" .name) -}}
{{- end -}}
{{- if hasKey $names .name -}}
{{- fail (printf "pulsegate: listeners: the name %q is used twice" .name) -}}
{{- end -}}
{{- $_ := set $names .name true -}}
{{- $listener := . -}}
{{- range $key := list "port" "appPort" "servicePort" -}}
{{- $port := get $listener $key -}}
{{- if not (or (kindIs "invalid" $port) (regexMatch "^[0-9]*$" (toString $port))) -}}
{{- fail (printf "pulsegate: listeners: %s of %q is %v; it is a number from 1 to 65535, not a name" $key $listener.name $port) -}}
{{- end -}}
{{- end -}}
{{- if not (and (ge (int .port) 1024) (le (int .port) 65535)) -}}
{{- fail (printf "pulsegate: listeners: port of %q is %v; it is from 1024 to 65535, because pulsegate has no privilege for less. Clients use servicePort" .name .port) -}}
{{- end -}}
{{- if not (or .appPort (dig "address" "" (default (dict) .upstream)) (dig "endpoints" "" (default (dict) .upstream))) -}}
{{- fail (printf "pulsegate: listeners: appPort of %q says where the application listens" .name) -}}
{{- end -}}
{{- if eq (int .port) (int .appPort) -}}
{{- fail (printf "pulsegate: listeners: %q: port and appPort are %d both; the containers of a Pod share their ports, so pulsegate needs another one" .name (int .port)) -}}
{{- end -}}
{{- $port := int .port | toString -}}
{{- if hasKey $ports $port -}}
{{- fail (printf "pulsegate: listeners: port %s of %q is taken by %s" $port .name (get $ports $port)) -}}
{{- end -}}
{{- $_ := set $ports $port .name -}}
{{- $servicePort := coalesce .servicePort .appPort .port | int -}}
{{- range list .appPort $servicePort -}}
{{- if and . (or (lt (int .) 1) (gt (int .) 65535)) -}}
{{- fail (printf "pulsegate: listeners: appPort and servicePort are from 1 to 65535, not %v" .) -}}
{{- end -}}
{{- end -}}
{{- if hasKey $servicePorts (toString $servicePort) -}}
{{- fail (printf "pulsegate: listeners: the Service has port %d of %q already; give %q another servicePort" $servicePort (get $servicePorts (toString $servicePort)) .name) -}}
{{- end -}}
{{- $_ := set $servicePorts (toString $servicePort) .name -}}
{{- end -}}
{{- range $values.listeners -}}
{{- if hasKey $ports (int .appPort | toString) -}}
{{- fail (printf "pulsegate: listeners: appPort %d of %q is taken by %s of pulsegate; the containers of a Pod share their ports" (int .appPort) .name (get $ports (int .appPort | toString))) -}}
{{- end -}}
{{- end -}}
{{- toJson $values -}}
{{- end -}}

{{/* Milliseconds of a duration such as 500ms, 25s, 2m or 1h. */}}
{{- define "pulsegate.milliseconds" -}}
{{- if not (regexMatch "^[0-9]+(ms|s|m|h)$" (toString .)) -}}
{{- fail (printf "pulsegate: config.drain: %v is no duration; write a whole number and a unit, such as 25s" .) -}}
{{- end -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{- mul (regexFind "^[0-9]+" . | int64) (get (dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000) $unit) -}}
{{- end -}}

{{/* How long a drain takes at most, in whole seconds; the argument is the values. */}}
{{- define "pulsegate.drainSeconds" -}}
{{- $drain := default (dict) .config.drain -}}
{{- $delay := include "pulsegate.milliseconds" (default "0s" $drain.delay) | int64 -}}
{{- $timeout := include "pulsegate.milliseconds" (default "25s" $drain.timeout) | int64 -}}
{{- /* Sessions that are ended by it have two more seconds. */ -}}
{{- add 3 (div (add $delay $timeout 999) 1000) -}}
{{- end -}}

{{- define "pulsegate.configName" -}}
{{- $values := include "pulsegate.values" . | fromJson -}}
{{- default (printf "%s-pulsegate" .root.Release.Name) $values.name -}}
{{- end -}}
