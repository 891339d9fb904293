{{- define "trunkline.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{- define "trunkline.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "trunkline.instance" . }}
{{- end -}}

{{- define "trunkline.instance" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- /* What selects the servers: without the component, it would select the migration's pod too. */}}
{{- define "trunkline.server" -}}
{{ include "trunkline.instance" . }}
app.kubernetes.io/component: server
{{- end -}}

{{- define "trunkline.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "trunkline.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "trunkline.fullname" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end -}}

{{- define "trunkline.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "trunkline.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "trunkline.databaseUrl" -}}
- name: TRUNKLINE_DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ .Values.database.secretName }}
      key: {{ .Values.database.secretKey }}
{{- end -}}

{{- /* A share of 0 is one that is set, so it is looked at as a text. */}}
{{- define "trunkline.tracing" -}}
{{- with .Values.tracing -}}
{{- $share := toString .samplerArgument -}}
{{- if and $share (not (has .sampler (list "traceidratio" "parentbased_traceidratio"))) -}}
{{- fail "tracing.samplerArgument needs a tracing.sampler that takes a ratio" -}}
{{- end -}}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ .endpoint | quote }}
- name: OTEL_EXPORTER_OTLP_PROTOCOL
  value: {{ .protocol | quote }}
{{- with .sampler }}
- name: OTEL_TRACES_SAMPLER
  value: {{ . | quote }}
{{- end }}
{{- with $share }}
- name: OTEL_TRACES_SAMPLER_ARG
  value: {{ . | quote }}
{{- end }}
{{- with .headersSecret }}
{{- if .name }}
- name: OTEL_EXPORTER_OTLP_HEADERS
  valueFrom:
    secretKeyRef:
      name: {{ .name }}
      key: {{ .key }}
{{- end }}
{{- end }}
{{- end -}}
{{- end -}}

{{- /* How the kubelet asks. It has no gRPC probe with TLS, and no client certificate for any. */}}
{{- define "trunkline.probeBy" -}}
{{- if not .Values.tls.secretName -}}grpc
{{- else if and .Values.http.enabled (not .Values.tls.clientCa.secretName) -}}https
{{- else -}}command
{{- end -}}
{{- end -}}

{{- define "trunkline.liveness" -}}
{{- $by := include "trunkline.probeBy" . -}}
{{- if eq $by "grpc" -}}
grpc: {port: {{ .Values.grpc.port }}, service: liveness}
{{- else if eq $by "https" -}}
httpGet: {port: http, path: /healthz, scheme: HTTPS}
{{- else -}}
exec: {command: [trunkline, probe, --service, liveness]}
{{- end -}}
{{- end -}}

{{- define "trunkline.readiness" -}}
{{- $by := include "trunkline.probeBy" . -}}
{{- if eq $by "grpc" -}}
grpc: {port: {{ .Values.grpc.port }}, service: ""}
{{- else if eq $by "https" -}}
httpGet: {port: http, path: /readyz, scheme: HTTPS}
{{- else -}}
exec: {command: [trunkline, probe]}
{{- end -}}
{{- end -}}
