{{- define "undoubt.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}-undoubt
{{- end }}

{{- define "undoubt.selector" -}}
app.kubernetes.io/name: undoubt
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: node
{{- end }}

{{- define "undoubt.labels" -}}
{{ include "undoubt.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "undoubt.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- /* The cluster's own id: what stands in certificates. */ -}}
{{- define "undoubt.cluster" -}}
{{- $id := required "cluster.id is missing: what `undoubt cluster init` has printed, see the README of the chart" .Values.cluster.id -}}
{{ first (splitList "-" $id) }}
{{- end }}

{{- define "undoubt.host" -}}
{{ include "undoubt.name" .root }}-{{ .number }}.{{ include "undoubt.name" .root }}.{{ .root.Release.Namespace }}.svc.{{ .root.Values.cluster.domain }}
{{- end }}

{{- /* The URL of the ledger, for nodes and for clients. */ -}}
{{- define "undoubt.url" -}}
{{- $hosts := list -}}
{{- range $number := untilStep 1 (int (add1 .Values.nodes.count)) 1 -}}
{{- $hosts = append $hosts (printf "%s:7400" (include "undoubt.host" (dict "root" $ "number" $number))) -}}
{{- end -}}
raft://{{ join "," $hosts }}
{{- end }}

{{- /* What no container of undoubt may do. */ -}}
{{- define "undoubt.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- /*
A native sidecar for the pods of a service: in its initContainers, before those that need it. The context is the chart's
(in a parent chart: `.Subcharts.undoubt`). The pod mounts the volumes undoubt-config (undoubt.toml), undoubt-tls (the client's
certificate) and undoubt-run (emptyDir, in which the service finds http.sock), and runs all of its containers as one user:
the socket serves no other.
*/ -}}
{{- define "undoubt.sidecar" -}}
name: undoubt-sidecar
image: {{ include "undoubt.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
restartPolicy: Always
args: [sidecar]
env:
  - {name: UNDOUBT_LEDGER__URL, value: {{ include "undoubt.url" . | quote }}}
  - {name: UNDOUBT_LEDGER__TLS_CA, value: /etc/undoubt/tls/ca.crt}
  - {name: UNDOUBT_LEDGER__TLS_CERT, value: /etc/undoubt/tls/tls.crt}
  - {name: UNDOUBT_LEDGER__TLS_KEY, value: /etc/undoubt/tls/tls.key}
  - {name: UNDOUBT_SIDECAR__SOCKET, value: /run/undoubt/http/http.sock}
# The kubelet reaches no unix socket: the probes run a command.
startupProbe:
  exec: {command: [undoubt, health, sidecar, --ready]}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: 60
livenessProbe:
  exec: {command: [undoubt, health, sidecar]}
  periodSeconds: 20
  timeoutSeconds: 5
readinessProbe:
  exec: {command: [undoubt, health, sidecar, --ready]}
  periodSeconds: 10
  timeoutSeconds: 5
resources:
  {{- toYaml .Values.sidecar.resources | nindent 2 }}
securityContext:
  {{- include "undoubt.containerSecurity" . | nindent 2 }}
volumeMounts:
  - {name: undoubt-config, mountPath: /etc/undoubt/undoubt.toml, subPath: undoubt.toml, readOnly: true}
  - {name: undoubt-tls, mountPath: /etc/undoubt/tls, readOnly: true}
  - {name: undoubt-run, mountPath: /run/undoubt}
{{- end }}
