{{- define "pulsegate.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "pulsegate.fullname" -}}
{{- $name := include "pulsegate.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 57 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 57 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 57 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "pulsegate.selectorLabels" -}}
app.kubernetes.io/name: {{ include "pulsegate.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "pulsegate.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "pulsegate.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "pulsegate.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "pulsegate.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "pulsegate.image" -}}
{{- with .Values.image.registry }}{{ . }}/{{ end -}}
{{- .Values.image.repository -}}
{{- if .Values.image.digest -}}
@{{ .Values.image.digest }}
{{- else -}}
:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{/* Milliseconds of a duration such as 500ms, 25s, 2m or 1h. The schema has checked its form. */}}
{{- define "pulsegate.milliseconds" -}}
{{- $number := regexFind "^[0-9]+" . | int64 -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{- mul $number (get (dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000) $unit) -}}
{{- end -}}

{{/* drain.delay + drain.timeout in seconds, rounded up. */}}
{{- define "pulsegate.drainSeconds" -}}
{{- $delay := include "pulsegate.milliseconds" .Values.config.drain.delay | int64 -}}
{{- $timeout := include "pulsegate.milliseconds" .Values.config.drain.timeout | int64 -}}
{{- div (add $delay $timeout 999) 1000 -}}
{{- end -}}

{{/* Never so short that the kubelet kills what drain.timeout still allows. */}}
{{- define "pulsegate.gracePeriodSeconds" -}}
{{- $drain := include "pulsegate.drainSeconds" . | int -}}
{{- $grace := .Values.terminationGracePeriodSeconds -}}
{{- if kindIs "invalid" $grace -}}
{{- add $drain 5 -}}
{{- else if le (int $grace) $drain -}}
{{- fail (printf "terminationGracePeriodSeconds: %d is too small: config.drain.delay (%s) + config.drain.timeout (%s) need more than %d; sessions would be killed while they drain" (int $grace) .Values.config.drain.delay .Values.config.drain.timeout $drain) -}}
{{- else -}}
{{- int $grace -}}
{{- end -}}
{{- end -}}

{{/* pulsegate.yaml */}}
{{- define "pulsegate.config" -}}
{{- $listeners := list -}}
{{- range .Values.listeners -}}
{{- $listener := omit . "port" "servicePort" "nodePort" -}}
{{- $_ := set $listener "address" (printf "%s:%d" $.Values.bindAddress (int .port)) -}}
{{- $listeners = append $listeners $listener -}}
{{- end -}}
{{- $admin := dict "address" (printf "%s:%d" .Values.bindAddress (int .Values.admin.port)) "control" "unix:/run/pulsegate/control.sock" -}}
{{- toYaml (merge (dict "listeners" $listeners "admin" $admin) (deepCopy .Values.config)) -}}
{{- end -}}

{{/* Secrets with certificates and keys. Without subPath, which the kubelet never updates. */}}
{{- define "pulsegate.tlsMounts" -}}
{{- range $n, $name := .Values.tlsSecrets }}
- name: tls-{{ $n }}
  mountPath: /etc/pulsegate-tls/{{ $name }}
  readOnly: true
{{- end -}}
{{- end -}}

{{- define "pulsegate.tlsVolumes" -}}
{{- range $n, $name := .Values.tlsSecrets }}
- name: tls-{{ $n }}
  secret:
    secretName: {{ $name }}
{{- end -}}
{{- end -}}

{{/* What the schema cannot say. */}}
{{- define "pulsegate.validate" -}}
{{- if not .Values.listeners -}}
{{- fail "listeners: at least one is needed; see values.yaml for an example" -}}
{{- end -}}
{{- $names := dict -}}
{{- $ports := dict (int .Values.admin.port | toString) "admin.port" -}}
{{- $servicePorts := dict -}}
{{- range .Values.listeners -}}
{{- if hasKey $names .name -}}
{{- fail (printf "listeners: the name %q is used twice" .name) -}}
{{- end -}}
{{- $_ := set $names .name true -}}
{{- $port := int .port | toString -}}
{{- if hasKey $ports $port -}}
{{- fail (printf "listeners: port %s of %q is taken by %s" $port .name (get $ports $port)) -}}
{{- end -}}
{{- $_ := set $ports $port .name -}}
{{- $servicePort := default .port .servicePort | int | toString -}}
{{- if hasKey $servicePorts $servicePort -}}
{{- fail (printf "listeners: service port %s of %q is taken by %s" $servicePort .name (get $servicePorts $servicePort)) -}}
{{- end -}}
{{- $_ := set $servicePorts $servicePort .name -}}
{{- $limits := mergeOverwrite (dict) (dig "limits" (dict) (default (dict) $.Values.config.defaults)) (default (dict) .limits) -}}
{{- if eq (toString (get $limits "max_connections")) "1" -}}
{{- if or (ne (int $.Values.replicaCount) 1) (ne $.Values.strategy.type "Recreate") -}}
{{- fail (printf "listeners: max_connections of %q is 1, and each Pod would take one client to %s: set replicaCount: 1 and strategy: {type: Recreate}" .name (include "pulsegate.upstream" .upstream)) -}}
{{- end -}}
{{- end -}}
{{- if and .nodePort (eq $.Values.service.type "ClusterIP") -}}
{{- fail (printf "listeners: nodePort of %q needs service.type NodePort or LoadBalancer" .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Where a service is, in words. */}}
{{- define "pulsegate.upstream" -}}
{{- $places := list -}}
{{- range .endpoints -}}{{- $places = append $places .address -}}{{- end -}}
{{- .address | default (join ", " $places) -}}
{{- end -}}
