{{- define "delo.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* Short enough for the suffix -headless. */}}
{{- define "delo.fullname" -}}
{{- $name := include "delo.name" . }}
{{- $default := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) }}
{{- default $default .Values.fullnameOverride | trunc 53 | trimSuffix "-" }}
{{- end }}

{{- define "delo.selectorLabels" -}}
app.kubernetes.io/name: {{ include "delo.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "delo.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{ include "delo.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "delo.serviceAccountName" -}}
{{- default (.Values.serviceAccount.create | ternary (include "delo.fullname" .) "default") .Values.serviceAccount.name }}
{{- end }}

{{- define "delo.image" -}}
{{- with .Values.image }}
{{- .digest | empty | ternary (printf "%s:%s" .repository (default $.Chart.AppVersion .tag)) (printf "%s@%s" .repository .digest) }}
{{- end }}
{{- end }}

{{- define "delo.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "delo.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* Sections, keys and values as TOML. JSON's strings, numbers, booleans and lists are TOML's. Argument: a dictionary, its "prefix" and "table". */}}
{{- define "delo.toml" -}}
{{- $prefix := .prefix }}
{{- range $key, $value := .table }}
{{- if not (kindIs "map" $value) }}
{{ $key }} = {{ mustToRawJson $value }}
{{- end }}
{{- end }}
{{- range $key, $value := .table }}
{{- if kindIs "map" $value }}

[{{ $prefix }}{{ $key }}]
{{- include "delo.toml" (dict "prefix" (printf "%s%s." $prefix $key) "table" $value) }}
{{- end }}
{{- end }}
{{- end }}

{{/* What a probe asks. The kubelet's gRPC probe speaks no TLS; with it, the server's own probe asks, by the server's settings. */}}
{{- define "delo.alive" -}}
{{- if .Values.tls.secretName -}}
exec:
  command: [delo, health, --live]
{{- else -}}
grpc:
  port: 50051
  service: liveness
{{- end }}
{{- end }}

{{- define "delo.ready" -}}
{{- if .Values.tls.secretName -}}
exec:
  command: [delo, health]
{{- else -}}
grpc:
  port: 50051
{{- end }}
{{- end }}
