{{/* Each takes (dict "root" $ "config" .Values.pulsegate). README.md of this chart shows where each one stands. */}}

{{/* For initContainers: the native sidecar; nothing with sidecar.native: false. */}}
{{- define "pulsegate.sidecar" -}}
{{- $values := include "pulsegate.values" . | fromJson -}}
{{- if $values.sidecar.native -}}
{{- include "pulsegate.container" . -}}
{{- end -}}
{{- end -}}

{{/* For containers: the sidecar with sidecar.native: false; else nothing. */}}
{{- define "pulsegate.classicSidecar" -}}
{{- $values := include "pulsegate.values" . | fromJson -}}
{{- if not $values.sidecar.native -}}
{{- include "pulsegate.container" . -}}
{{- end -}}
{{- end -}}

{{- define "pulsegate.container" -}}
{{- $values := include "pulsegate.values" . | fromJson -}}
{{- $image := $values.image -}}
{{- $scheme := empty (default (dict) $values.config.admin).tls | ternary "" "\n      scheme: HTTPS" -}}
- name: pulsegate
  image: {{ printf "%s%s%s" (empty $image.registry | ternary "" (printf "%s/" $image.registry)) $image.repository (empty $image.digest | ternary (printf ":%s" $image.tag) (printf "@%s" $image.digest)) | quote }}
  imagePullPolicy: {{ $image.pullPolicy }}
  {{- if $values.sidecar.native }}
  restartPolicy: Always
  {{- end }}
  args: ["run", "-c", "/etc/pulsegate/pulsegate.yaml"]
  ports:
    {{- range $values.listeners }}
    - containerPort: {{ int .port }}
      protocol: TCP
    {{- end }}
    - name: pulsegate-admin
      containerPort: {{ int $values.admin.port }}
      protocol: TCP
  lifecycle:
    # The kubelet runs the hooks of all containers at once, before it stops the first of them.
    preStop:
      exec:
        command: ["/pulsegate", "drain", "--wait", "--timeout", "{{ include "pulsegate.drainSeconds" $values }}s", "--admin", "unix:/run/pulsegate/control.sock"]
  # Never on a listener: each probe would be a connection to the application. A native sidecar holds back the
  # application until its startupProbe succeeds.
  startupProbe:
    httpGet:
      path: /readyz
      port: pulsegate-admin
      {{- $scheme }}
    periodSeconds: 1
    failureThreshold: 60
  readinessProbe:
    httpGet:
      path: /readyz
      port: pulsegate-admin
      {{- $scheme }}
    periodSeconds: 5
  livenessProbe:
    httpGet:
      path: /livez
      port: pulsegate-admin
      {{- $scheme }}
    periodSeconds: 10
  resources:
    {{- toYaml $values.resources | nindent 4 }}
  securityContext:
    {{- toYaml $values.securityContext | nindent 4 }}
  terminationMessagePolicy: FallbackToLogsOnError
  volumeMounts:
    - name: pulsegate-config
      mountPath: /etc/pulsegate
      readOnly: true
    - name: pulsegate-run
      mountPath: /run/pulsegate
    {{- range $n, $name := $values.tlsSecrets }}
    - name: pulsegate-tls-{{ $n }}
      mountPath: /etc/pulsegate-tls/{{ $name }}
      readOnly: true
    {{- end }}
{{- end -}}

{{/* For volumes. */}}
{{- define "pulsegate.volumes" -}}
{{- $values := include "pulsegate.values" . | fromJson -}}
- name: pulsegate-config
  configMap:
    name: {{ include "pulsegate.configName" . }}
- name: pulsegate-run
  emptyDir:
    medium: Memory
    sizeLimit: 1Mi
{{- range $n, $name := $values.tlsSecrets }}
- name: pulsegate-tls-{{ $n }}
  secret:
    secretName: {{ $name }}
{{- end }}
{{- end -}}

{{/* For ports of the Service. By number: a port of the application may have any name. */}}
{{- define "pulsegate.ports" -}}
{{- $values := include "pulsegate.values" . | fromJson -}}
{{- range $n, $listener := $values.listeners }}
{{- if $n }}{{ "\n" }}{{ end -}}
- name: {{ $listener.name | quote }}
  port: {{ coalesce $listener.servicePort $listener.appPort $listener.port | int }}
  targetPort: {{ int $listener.port }}
  protocol: TCP
{{- end }}
{{- end -}}

{{/* For lifecycle of the application's container. The kubelet stops a native sidecar last, so the application has to
outlive the drain: it sleeps while the endpoint disappears and sessions finish. */}}
{{- define "pulsegate.appLifecycle" -}}
{{- $values := include "pulsegate.values" . | fromJson -}}
{{- $seconds := include "pulsegate.drainSeconds" $values | int -}}
preStop:
{{- if or (eq $values.appPreStop "sleep") (and (eq $values.appPreStop "auto") (semverCompare ">=1.30.0-0" .root.Capabilities.KubeVersion.Version)) }}
  sleep:
    seconds: {{ $seconds }}
{{- else }}
  exec:
    command: ["sleep", "{{ $seconds }}"]
{{- end }}
{{- end -}}

{{/* How long a preStop hook of the application's own has to take. */}}
{{- define "pulsegate.appSleepSeconds" -}}
{{- include "pulsegate.drainSeconds" (include "pulsegate.values" . | fromJson) -}}
{{- end -}}

{{/* For terminationGracePeriodSeconds: the drain, and the end of the application. */}}
{{- define "pulsegate.gracePeriodSeconds" -}}
{{- $values := include "pulsegate.values" . | fromJson -}}
{{- add (include "pulsegate.drainSeconds" $values | int) 2 (int $values.appStopSeconds) -}}
{{- end -}}

{{/* For labels of the Pod: one PodMonitor finds all sidecars by it. */}}
{{- define "pulsegate.labels" -}}
pulsegate.io/sidecar: "true"
{{- end -}}

{{/* The ConfigMap. A running sidecar takes up a changed one. */}}
{{- define "pulsegate.config" -}}
{{- $values := include "pulsegate.values" . | fromJson -}}
{{- $listeners := list -}}
{{- range $values.listeners -}}
{{- $listener := omit . "port" "appPort" "servicePort" -}}
{{- $_ := set $listener "address" (printf "0.0.0.0:%d" (int .port)) -}}
{{- if .appPort -}}
{{- $_ := set $listener "upstream" (mergeOverwrite (dict "address" (printf "127.0.0.1:%d" (int .appPort))) (default (dict) .upstream)) -}}
{{- end -}}
{{- $listeners = append $listeners $listener -}}
{{- end -}}
{{- $admin := dict "address" (printf "0.0.0.0:%d" (int $values.admin.port)) "control" "unix:/run/pulsegate/control.sock" -}}
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ include "pulsegate.configName" . }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    app.kubernetes.io/instance: {{ .root.Release.Name }}
    app.kubernetes.io/managed-by: {{ .root.Release.Service }}
data:
  pulsegate.yaml: |
    {{- toYaml (merge (dict "listeners" $listeners "admin" $admin) $values.config) | nindent 4 }}
{{- end -}}

{{/* For NOTES.txt. */}}
{{- define "pulsegate.notes" -}}
{{- $values := include "pulsegate.values" . | fromJson -}}
pulsegate stands before the application in each Pod:
{{- range $values.listeners }}
  port {{ coalesce .servicePort .appPort .port | int }} of the Service -> {{ int .port }} (pulsegate) -> {{ if .appPort }}127.0.0.1:{{ int .appPort }}{{ else }}its upstream{{ end }} ({{ .name }})
{{- end }}

A Service with ports of its own goes round pulsegate until its targetPort is the one in the middle.

What it sees:
  kubectl -n {{ .root.Release.Namespace }} exec POD -c pulsegate -- /pulsegate conns
If a Pod does not start, pulsegate says what is wrong with its configuration:
  kubectl -n {{ .root.Release.Namespace }} logs POD -c pulsegate
{{- if not $values.sidecar.native }}

WARNING: sidecar.native is false: pulsegate starts beside the application, not before it, and keeps a Job from ending.
{{- end }}
{{- end -}}
