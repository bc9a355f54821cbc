{{- define "pulsegate-gateway.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "pulsegate-gateway.fullname" -}}
{{- $name := include "pulsegate-gateway.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 57 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 57 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 57 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "pulsegate-gateway.selectorLabels" -}}
app.kubernetes.io/name: {{ include "pulsegate-gateway.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "pulsegate-gateway.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "pulsegate-gateway.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Those of all objects, and one object's own: (list $ LABELS). Of two with one key its own counts. */}}
{{- define "pulsegate-gateway.labelsWith" -}}
{{- mergeOverwrite (include "pulsegate-gateway.labels" (first .) | fromYaml) (default (dict) (last .)) | toYaml -}}
{{- end -}}

{{- define "pulsegate-gateway.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "pulsegate-gateway.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "pulsegate-gateway.image" -}}
{{- with .Values.image.registry }}{{ . }}/{{ end -}}
{{- .Values.image.repository -}}
{{- if .Values.image.digest -}}
@{{ .Values.image.digest }}
{{- else -}}
:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{/* Milliseconds of a duration such as 500ms, 25s, 2m or 1h. The schema has checked its form. */}}
{{- define "pulsegate-gateway.milliseconds" -}}
{{- $number := regexFind "^[0-9]+" . | int64 -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{- mul $number (get (dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000) $unit) -}}
{{- end -}}

{{/* drain.delay + drain.timeout in seconds, rounded up. */}}
{{- define "pulsegate-gateway.drainSeconds" -}}
{{- $delay := include "pulsegate-gateway.milliseconds" (dig "drain" "delay" "0s" .Values.config) | int64 -}}
{{- $timeout := include "pulsegate-gateway.milliseconds" (dig "drain" "timeout" "25s" .Values.config) | int64 -}}
{{- div (add $delay $timeout 999) 1000 -}}
{{- end -}}

{{/* Never so short that the kubelet kills what drain.timeout still allows. */}}
{{- define "pulsegate-gateway.gracePeriodSeconds" -}}
{{- $drain := include "pulsegate-gateway.drainSeconds" . | int -}}
{{- $grace := .Values.terminationGracePeriodSeconds -}}
{{- if kindIs "invalid" $grace -}}
{{- add $drain 5 -}}
{{- else if le (int $grace) $drain -}}
{{- fail (printf "terminationGracePeriodSeconds: %d is too small: config.drain.delay (%s) + config.drain.timeout (%s) need more than %d; sessions would be killed while they drain" (int $grace) .Values.config.drain.delay .Values.config.drain.timeout $drain) -}}
{{- else -}}
{{- int $grace -}}
{{- end -}}
{{- end -}}

{{- define "pulsegate-gateway.configName" -}}
{{- default (include "pulsegate-gateway.fullname" .) .Values.existingConfigMap -}}
{{- end -}}

{{- define "pulsegate-gateway.control" -}}
unix:/run/pulsegate/control.sock
{{- end -}}

{{/* What the kubelet and Prometheus speak with the admin port. */}}
{{- define "pulsegate-gateway.probeScheme" -}}
scheme: {{ if .Values.admin.tls }}HTTPS{{ else }}HTTP{{ end }}
{{- end -}}

{{/* pulsegate.yaml */}}
{{- define "pulsegate-gateway.config" -}}
{{- $listeners := list -}}
{{- range .Values.listeners -}}
{{- $listener := omit . "port" "servicePort" "nodePort" -}}
{{- $_ := set $listener "address" (printf "%s:%d" $.Values.bindAddress (int .port)) -}}
{{- $listeners = append $listeners $listener -}}
{{- end -}}
{{- $admin := omit .Values.admin "port" "service" -}}
{{- if not .Values.admin.tls -}}{{- $admin = omit $admin "tls" -}}{{- end -}}
{{- $_ := set $admin "address" (printf "%s:%d" .Values.bindAddress (int .Values.admin.port)) -}}
{{- $_ := set $admin "control" (include "pulsegate-gateway.control" .) -}}
{{- $config := deepCopy .Values.config -}}
{{- with include "pulsegate-gateway.tlsSecret" . -}}
{{- $pair := dict "certificate" (printf "/etc/pulsegate-tls/%s/tls.crt" .) "key" (printf "/etc/pulsegate-tls/%s/tls.key" .) -}}
{{- $defaults := default (dict) $config.defaults -}}
{{- $tls := dict "certificates" (list $pair) -}}
{{- $_ := set $config "defaults" (set $defaults "tls" (mergeOverwrite $tls (default (dict) $defaults.tls))) -}}
{{- end -}}
{{- toYaml (merge (dict "listeners" $listeners "admin" $admin) $config) -}}
{{- end -}}

{{/* The Secret of the certificate that all listeners have. */}}
{{- define "pulsegate-gateway.tlsSecret" -}}
{{- if .Values.tls.existingSecret -}}
{{- .Values.tls.existingSecret -}}
{{- else if .Values.tls.certManager.enabled -}}
{{- include "pulsegate-gateway.fullname" . }}-tls
{{- end -}}
{{- end -}}

{{- define "pulsegate-gateway.tlsSecrets" -}}
{{- $names := .Values.tlsSecrets -}}
{{- with include "pulsegate-gateway.tlsSecret" . -}}
{{- $names = append $names . | uniq -}}
{{- end -}}
{{- toJson $names -}}
{{- end -}}

{{/* Secrets with certificates and keys. Without subPath, which the kubelet never updates. */}}
{{- define "pulsegate-gateway.tlsMounts" -}}
{{- range $n, $name := include "pulsegate-gateway.tlsSecrets" . | fromJsonArray }}
{{- if $n }}{{ "\n" }}{{ end -}}
- name: tls-{{ $n }}
  mountPath: /etc/pulsegate-tls/{{ $name }}
  readOnly: true
{{- end -}}
{{- end -}}

{{- define "pulsegate-gateway.tlsVolumes" -}}
{{- range $n, $name := include "pulsegate-gateway.tlsSecrets" . | fromJsonArray }}
{{- if $n }}{{ "\n" }}{{ end -}}
- name: tls-{{ $n }}
  secret:
    secretName: {{ $name }}
{{- end -}}
{{- end -}}

{{/* The part of an endpoint that ServiceMonitor and the PodMonitors have in common: (list VALUES JOB). Alerts find jobs
by "pulsegate" in their name, whatever the name of the release is. */}}
{{- define "pulsegate-gateway.scrape" -}}
{{- $values := first . -}}
{{- $job := last . -}}
path: /metrics
# Our label `endpoint` stays; the operator has one of this name, too.
honorLabels: true
interval: {{ $values.interval }}
{{- with $values.scrapeTimeout }}
scrapeTimeout: {{ . }}
{{- end }}
relabelings:
  - targetLabel: job
    replacement: {{ contains "pulsegate" $job | ternary $job (printf "%s-pulsegate" $job) }}
  {{- with $values.relabelings }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $values.metricRelabelings }}
metricRelabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The admin port speaks HTTPS. Its certificate is that of a name which Prometheus does not use. */}}
{{- define "pulsegate-gateway.scrapeTls" -}}
{{- if .Values.admin.tls -}}
scheme: https
tlsConfig:
  insecureSkipVerify: true
{{- end -}}
{{- end -}}

{{/* What the schema cannot say. */}}
{{- define "pulsegate-gateway.validate" -}}
{{- if not .Values.listeners -}}
{{- fail "listeners: at least one is needed; see values.yaml for an example" -}}
{{- end -}}
{{- $names := dict -}}
{{- $ports := dict (int .Values.admin.port | toString) "admin.port" -}}
{{- $servicePorts := dict -}}
{{- $nodePorts := dict -}}
{{- range $listener := .Values.listeners -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]{0,13}[a-z0-9])?$" .name) -}}
{{- fail (printf "listeners: the name %q is the name of a port, too: at most 15 lower-case letters, digits and \"-\", a letter first" .name) -}}
{{- end -}}
{{- if or (contains "--" .name) (eq .name "admin") -}}
{{- fail (printf "listeners: the name %q: \"admin\" is that of another port, and \"--\" is in no name of a port; choose another" .name) -}}
{{- end -}}
{{- if $.Values.existingConfigMap -}}
{{- with omit . "name" "port" "servicePort" "nodePort" -}}
{{- fail (printf "listeners: with existingConfigMap a listener has name, port, servicePort and nodePort only; put %s into the file in %s" (keys . | sortAlpha | join ", ") $.Values.existingConfigMap) -}}
{{- end -}}
{{- else if not (or (dig "address" "" (default (dict) .upstream)) (dig "endpoints" "" (default (dict) .upstream))) -}}
{{- fail (printf "listeners: upstream of %q needs address, or endpoints" .name) -}}
{{- end -}}
{{- range $key, $range := dict "port" (list 1024 65535) "servicePort" (list 1 65535) "nodePort" (list 1 65535) -}}
{{- $value := get $listener $key -}}
{{- if and (hasKey $listener $key) (or (lt (int $value) (first $range)) (gt (int $value) (last $range))) -}}
{{- fail (printf "listeners: %s of %q is %d; it is from %d to %d.%s" $key $listener.name (int $value) (first $range) (last $range) (eq $key "port" | ternary " pulsegate has no privilege for less; clients use servicePort" "")) -}}
{{- end -}}
{{- end -}}
{{- if hasKey $names .name -}}
{{- fail (printf "listeners: the name %q is used twice; give each its own" .name) -}}
{{- end -}}
{{- $_ := set $names .name true -}}
{{- $port := int .port | toString -}}
{{- if hasKey $ports $port -}}
{{- fail (printf "listeners: port %s of %q is taken by %s; choose another port, and leave servicePort to the clients" $port .name (get $ports $port)) -}}
{{- end -}}
{{- $_ := set $ports $port .name -}}
{{- $servicePort := default .port .servicePort | int | toString -}}
{{- if hasKey $servicePorts $servicePort -}}
{{- fail (printf "listeners: service port %s of %q is taken by %s; give one of them another servicePort" $servicePort .name (get $servicePorts $servicePort)) -}}
{{- end -}}
{{- $_ := set $servicePorts $servicePort .name -}}
{{- $limits := mergeOverwrite (dict) (dig "limits" (dict) (default (dict) $.Values.config.defaults)) (default (dict) .limits) -}}
{{- if eq (toString (get $limits "max_connections")) "1" -}}
{{- $to := include "pulsegate-gateway.upstream" .upstream -}}
{{- if or (eq $.Values.kind "DaemonSet") $.Values.autoscaling.enabled -}}
{{- fail (printf "listeners: max_connections of %q is 1, and each Pod would take one client to %s: use kind: Deployment with replicaCount: 1, strategy: {type: Recreate} and without autoscaling" .name $to) -}}
{{- end -}}
{{- if or (ne (int $.Values.replicaCount) 1) (ne $.Values.strategy.type "Recreate") -}}
{{- fail (printf "listeners: max_connections of %q is 1, and each Pod would take one client to %s: set replicaCount: 1 and strategy: {type: Recreate}" .name $to) -}}
{{- end -}}
{{- end -}}
{{- if .nodePort -}}
{{- if eq $.Values.service.type "ClusterIP" -}}
{{- fail (printf "listeners: nodePort of %q needs service.type NodePort or LoadBalancer" .name) -}}
{{- end -}}
{{- $nodePort := int .nodePort | toString -}}
{{- if hasKey $nodePorts $nodePort -}}
{{- fail (printf "listeners: nodePort %s of %q is taken by %s; choose another, or leave it out" $nodePort .name (get $nodePorts $nodePort)) -}}
{{- end -}}
{{- $_ := set $nodePorts $nodePort .name -}}
{{- end -}}
{{- end -}}
{{- include "pulsegate-gateway.validateSwitches" . -}}
{{- include "pulsegate-gateway.validateKubernetes" . -}}
{{- include "pulsegate-gateway.validateResources" . -}}
{{- include "pulsegate-gateway.validateTls" . -}}
{{- include "pulsegate-gateway.validateMonitors" . -}}
{{- include "pulsegate-gateway.validateNames" . -}}
{{- end -}}

{{- define "pulsegate-gateway.validateSwitches" -}}
{{- if and .Values.existingConfigMap (or .Values.config.defaults .Values.tls.existingSecret .Values.tls.certManager.enabled) -}}
{{- fail (printf "existingConfigMap: config.defaults and tls go into a file that this chart makes; put them into the one in %s, and name Secrets under tlsSecrets" .Values.existingConfigMap) -}}
{{- end -}}
{{- if eq (toString (default (dict) .Values.config.limits).memory) "true" -}}
{{- fail "config.limits.memory: true is no size: write auto, off, or a size such as 64MiB" -}}
{{- end -}}
{{- if and (eq .Values.reload.mode "hot") (eq (toString (dig "reload" "watch" true .Values.config)) "false") -}}
{{- fail "reload.mode: hot needs config.reload.watch: true: else no Pod takes up a changed configuration. Leave it out, or set reload.mode: rollout" -}}
{{- end -}}
{{- if and (eq .Values.kind "DaemonSet") .Values.autoscaling.enabled -}}
{{- fail "autoscaling.enabled: a DaemonSet has one Pod on each node; set kind: Deployment, or autoscaling.enabled: false" -}}
{{- end -}}
{{- if and (eq .Values.kind "DaemonSet") .Values.podDisruptionBudget.enabled -}}
{{- fail "podDisruptionBudget.enabled: Kubernetes keeps no budget of a DaemonSet's Pods; set kind: Deployment, or podDisruptionBudget.enabled: false" -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (lt (int .Values.autoscaling.maxReplicas) (int .Values.autoscaling.minReplicas)) -}}
{{- fail (printf "autoscaling: maxReplicas %d is below minReplicas %d" (int .Values.autoscaling.maxReplicas) (int .Values.autoscaling.minReplicas)) -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (not .Values.autoscaling.metrics) (not (dig "requests" "cpu" "" (default (dict) .Values.resources))) -}}
{{- fail "autoscaling goes by the CPU that is requested: set resources.requests.cpu, or autoscaling.metrics" -}}
{{- end -}}
{{- if hasKey .Values.podDisruptionBudget "minAvailable" -}}
{{- fail "podDisruptionBudget.minAvailable: with as many as replicaCount no node could ever be drained; set podDisruptionBudget.maxUnavailable" -}}
{{- end -}}
{{- if and .Values.podDisruptionBudget.enabled (has (toString .Values.podDisruptionBudget.maxUnavailable) (list "0" "0%")) -}}
{{- fail "podDisruptionBudget.maxUnavailable is 0: no node could ever be drained; set 1 or more, or podDisruptionBudget.enabled: false" -}}
{{- end -}}
{{- if and .Values.gateway.tcpRoute.enabled (not .Values.gateway.tcpRoute.parentRefs) -}}
{{- fail "gateway.tcpRoute.parentRefs: name the Gateway, such as [{name: edge, namespace: infra}]" -}}
{{- end -}}
{{- end -}}

{{/* What the API server would refuse. */}}
{{- define "pulsegate-gateway.validateKubernetes" -}}
{{- $service := .Values.service -}}
{{- if and $service.externalTrafficPolicy (eq $service.type "ClusterIP") -}}
{{- fail "service.externalTrafficPolicy needs service.type NodePort or LoadBalancer" -}}
{{- end -}}
{{- if and (or $service.loadBalancerClass $service.loadBalancerSourceRanges) (ne $service.type "LoadBalancer") -}}
{{- fail "service.loadBalancerClass and service.loadBalancerSourceRanges need service.type: LoadBalancer" -}}
{{- end -}}
{{- $rolling := dig "rollingUpdate" (dict) (eq .Values.kind "DaemonSet" | ternary .Values.updateStrategy .Values.strategy) | default (dict) -}}
{{- $none := list "0" "0%" -}}
{{- if and (has (toString $rolling.maxSurge) $none) (has (toString $rolling.maxUnavailable) $none) -}}
{{- fail "rollingUpdate: maxSurge and maxUnavailable are both 0: no Pod could ever be replaced; set one of them" -}}
{{- end -}}
{{- if and .Values.hostNetwork (eq .Values.kind "DaemonSet") (not (has (toString $rolling.maxSurge) $none)) (ne (toString .Values.updateStrategy.type) "OnDelete") -}}
{{- fail "hostNetwork: two Pods of one node cannot have one port, so no new one would start: set updateStrategy.rollingUpdate: {maxSurge: 0, maxUnavailable: 1}" -}}
{{- end -}}
{{- if and .Values.hostNetwork .Values.networkPolicy.enabled -}}
{{- fail "networkPolicy.enabled: Kubernetes applies no policy to a Pod with hostNetwork; set it to false, and use access of the listeners or the firewall of the nodes" -}}
{{- end -}}
{{- if ne (int (default 1 (default (dict) .Values.livenessProbe).successThreshold)) 1 -}}
{{- fail "livenessProbe.successThreshold: Kubernetes takes 1 only; leave it out" -}}
{{- end -}}
{{- end -}}

{{/* What a quantity such as 100m, 1.5 or 256Mi is in thousandths. */}}
{{- define "pulsegate-gateway.thousandths" -}}
{{- $number := toString . | regexFind "^[0-9.]+(e[+]?[0-9]+)?" | float64 -}}
{{- $unit := regexFind "[a-zA-Z]*$" (toString .) -}}
{{- $powers := dict "" 1.0 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 "m" 0.001 -}}
{{- printf "%.0f" (mulf $number (get $powers $unit) 1000) -}}
{{- end -}}

{{- define "pulsegate-gateway.validateResources" -}}
{{- $resources := default (dict) .Values.resources -}}
{{- $limits := default (dict) $resources.limits -}}
{{- range $what, $request := default (dict) $resources.requests -}}
{{- $limit := get $limits $what -}}
{{- if and $limit (lt (include "pulsegate-gateway.thousandths" $limit | float64) (include "pulsegate-gateway.thousandths" $request | float64)) -}}
{{- fail (printf "resources: limits.%s (%v) is below requests.%s (%v), and Kubernetes takes no such Pod; raise the limit, or lower the request" $what $limit $what $request) -}}
{{- end -}}
{{- end -}}
{{- $most := toString (default (dict) .Values.config.limits).memory | trimSuffix "B" -}}
{{- if and $limits.memory (regexMatch "^[0-9]+[KMG]i$" $most) -}}
{{- if gt (include "pulsegate-gateway.thousandths" $most | float64) (include "pulsegate-gateway.thousandths" $limits.memory | float64) -}}
{{- fail (printf "config.limits.memory (%sB) is above resources.limits.memory (%v): the kernel would kill the Pod before a session is shed; write auto, or less" $most $limits.memory) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "pulsegate-gateway.validateTls" -}}
{{- if and .Values.tls.existingSecret .Values.tls.certManager.enabled -}}
{{- fail "tls: existingSecret and certManager.enabled are two sources of one certificate; use one of them" -}}
{{- end -}}
{{- if and .Values.tls.certManager.enabled (not .Values.tls.certManager.issuerRef.name) -}}
{{- fail "tls.certManager.issuerRef.name: name the Issuer or ClusterIssuer that signs the certificate" -}}
{{- end -}}
{{- $issuer := .Values.tls.certManager.issuerRef -}}
{{- if and .Values.tls.certManager.enabled (eq (default "cert-manager.io" $issuer.group) "cert-manager.io") (not (has (default "Issuer" $issuer.kind) (list "Issuer" "ClusterIssuer"))) -}}
{{- fail (printf "tls.certManager.issuerRef.kind: %s: cert-manager has Issuer and ClusterIssuer; another one needs its group" $issuer.kind) -}}
{{- end -}}
{{- end -}}

{{- define "pulsegate-gateway.validateMonitors" -}}
{{- if and .Values.podMonitor.enabled .Values.serviceMonitor.enabled -}}
{{- fail "podMonitor and serviceMonitor are both enabled: every Pod would be scraped twice; use one of them" -}}
{{- end -}}
{{- if and .Values.serviceMonitor.enabled (not .Values.admin.service.enabled) -}}
{{- fail "serviceMonitor.enabled needs admin.service.enabled: true; podMonitor needs no Service" -}}
{{- end -}}
{{- end -}}

{{/* Server-side apply refuses a list with two items of one name, where an update once took the last. */}}
{{- define "pulsegate-gateway.validateNames" -}}
{{- $image := .Values.image -}}
{{- if and $image.registry (regexMatch "^([^/]*[.:][^/]*|localhost)/" $image.repository) -}}
{{- fail (printf "image.repository: %s begins with a registry, and image.registry is %s, so no node could pull it; set image.registry: %s, or \"\"" $image.repository $image.registry (splitList "/" $image.repository | first)) -}}
{{- end -}}
{{- if contains ":" (splitList "/" $image.repository | last) -}}
{{- fail (printf "image.repository: %s has a tag; set image.tag in its place" $image.repository) -}}
{{- end -}}
{{- $fullname := include "pulsegate-gateway.fullname" . -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $fullname) -}}
{{- fail (printf "the name of all objects would be %q: Kubernetes takes lower-case letters, digits and \"-\", a letter first; set fullnameOverride" $fullname) -}}
{{- end -}}
{{- if not (regexMatch "^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$" (include "pulsegate-gateway.name" .)) -}}
{{- fail (printf "nameOverride: %q is a label: letters, digits, \"-\", \"_\" and \".\"" .Values.nameOverride) -}}
{{- end -}}
{{- $env := dict -}}
{{- range .Values.env -}}
{{- if hasKey $env .name -}}{{- fail (printf "env: %q is there twice" .name) -}}{{- end -}}
{{- if not (has (kindOf .value) (list "string" "invalid")) -}}{{- fail (printf "env: the value of %s is %v: Kubernetes takes text only; quote it" .name .value) -}}{{- end -}}
{{- $_ := set $env .name true -}}
{{- end -}}
{{- $volumes := dict "config" true "run" true -}}
{{- range $n, $name := include "pulsegate-gateway.tlsSecrets" . | fromJsonArray -}}
{{- $_ := set $volumes (printf "tls-%d" $n) true -}}
{{- end -}}
{{- range .Values.extraVolumes -}}
{{- if hasKey $volumes .name -}}{{- fail (printf "extraVolumes: the name %q is taken; choose another" .name) -}}{{- end -}}
{{- $_ := set $volumes .name true -}}
{{- end -}}
{{- $paths := dict "/etc/pulsegate" true "/run/pulsegate" true -}}
{{- range include "pulsegate-gateway.tlsSecrets" . | fromJsonArray -}}
{{- $_ := set $paths (printf "/etc/pulsegate-tls/%s" .) true -}}
{{- end -}}
{{- range .Values.extraVolumeMounts -}}
{{- if hasKey $paths .mountPath -}}{{- fail (printf "extraVolumeMounts: something is mounted at %s already" .mountPath) -}}{{- end -}}
{{- if not (hasKey $volumes .name) -}}{{- fail (printf "extraVolumeMounts: there is no volume %q in extraVolumes" .name) -}}{{- end -}}
{{- $_ := set $paths .mountPath true -}}
{{- end -}}
{{- $taken := dict "helm.sh/chart" true "checksum/config" true "kubectl.kubernetes.io/default-container" true -}}
{{- range list "name" "instance" "version" "managed-by" "component" -}}
{{- $_ := set $taken (printf "app.kubernetes.io/%s" .) true -}}
{{- end -}}
{{- range $where := list "commonLabels" "podLabels" "podAnnotations" -}}
{{- range $key := keys (get $.Values $where | default (dict)) -}}
{{- if hasKey $taken $key -}}{{- fail (printf "%s: the chart itself, or commonLabels, sets %s" $where $key) -}}{{- end -}}
{{- if eq $where "commonLabels" -}}{{- $_ := set $taken $key true -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- $containers := dict "pulsegate" true -}}
{{- range .Values.extraContainers -}}
{{- if hasKey $containers .name -}}{{- fail (printf "extraContainers: the name %q is taken; choose another" .name) -}}{{- end -}}
{{- $_ := set $containers .name true -}}
{{- end -}}
{{- end -}}

{{/* Where a service is, in words. */}}
{{- define "pulsegate-gateway.upstream" -}}
{{- $places := list -}}
{{- range .endpoints -}}{{- $places = append $places .address -}}{{- end -}}
{{- .address | default (join ", " $places) -}}
{{- end -}}
