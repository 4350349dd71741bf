{{/* The environment of a service's process. */}}

{{- define "headrace.env" -}}
{{ include "headrace.env.base" . }}
{{- range .facts.calls }}
- name: HEADRACE_{{ upper . }}_TARGET
  value: {{ include "headrace.target" (list $.root .) }}
{{- end }}
{{- if .facts.nats }}
{{ include "headrace.env.secret" (list "HEADRACE_NATS_URL" .root.Values.secrets.nats .name) }}
{{- end }}
{{- range $variable, $entry := .facts.keys }}
{{ include "headrace.env.secret" (list $variable $.root.Values.secrets.keys $entry) }}
{{- end }}
{{- include "headrace.env.particular" . }}
{{- range $setting, $value := .svc.settings }}
- name: HEADRACE_{{ upper $.name }}_{{ upper $setting }}
  value: {{ kindIs "string" $value | ternary $value ($value | toJson) | quote }}
{{- end }}
{{- include "headrace.env.tracing" .root }}
{{- with .svc.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* What `migrate` needs too. */}}
{{- define "headrace.env.base" -}}
{{- $prefix := printf "HEADRACE_%s" (upper .name) -}}
- name: HEADRACE_LOG_FORMAT
  value: {{ .root.Values.logging.format }}
- name: HEADRACE_LOG_LEVEL
  value: {{ .root.Values.logging.level }}
- name: {{ $prefix }}_LISTEN
  value: {{ printf "0.0.0.0:%s" (include "headrace.port" .) }}
{{- if .facts.postgresql }}
{{ include "headrace.env.secret" (list (printf "%s_POSTGRES_URL" $prefix) .root.Values.secrets.postgresql .name) }}
{{- end }}
{{- if eq .name "vector" }}
- name: HEADRACE_VECTOR_INDEX_DIR
  value: /var/lib/headrace/indexes
{{- end }}
{{- end -}}

{{- define "headrace.env.particular" -}}
{{- $values := .root.Values }}
- name: HEADRACE_{{ upper .name }}_METRICS_LISTEN
  value: 0.0.0.0:9090
{{- if eq .name "gateway" }}
- name: HEADRACE_GATEWAY_TOKEN_ISSUER
  value: {{ $values.tokens.issuer | quote }}
- name: HEADRACE_GATEWAY_TOKEN_AUDIENCE
  value: {{ $values.tokens.audience | quote }}
{{- else if eq .name "auth" }}
- name: HEADRACE_AUTH_ISSUER
  value: {{ $values.tokens.issuer | quote }}
- name: HEADRACE_AUTH_AUDIENCE
  value: {{ $values.tokens.audience | quote }}
{{- else if eq .name "worker" }}
- name: HEADRACE_EGRESS_ALLOW
  value: {{ join "," $values.egress.allow | quote }}
- name: HEADRACE_EGRESS_DENY
  value: {{ join "," $values.egress.deny | quote }}
{{- else if eq .name "llm" }}
- name: HF_HOME
  value: /var/cache/headrace
- name: HF_HUB_OFFLINE
  value: {{ $values.llm.download | ternary "0" "1" | quote }}
{{- if include "headrace.llm.modelsVolume" .root }}
- name: HEADRACE_LLM_MODELS_FILE
  value: /etc/headrace/{{ include "headrace.llm.modelsKey" .root }}
{{- end }}
{{- end }}
{{- if .facts.threads }}
- name: OMP_NUM_THREADS
  valueFrom:
    resourceFieldRef:
      resource: limits.cpu
# Threads that spin while they wait take the cores from others.
- name: OMP_WAIT_POLICY
  value: PASSIVE
{{- end }}
{{- end -}}

{{- define "headrace.env.tracing" -}}
{{- with .Values.tracing }}
{{- if .otlpEndpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ .otlpEndpoint | quote }}
- name: OTEL_TRACES_SAMPLER
  value: parentbased_traceidratio
- name: OTEL_TRACES_SAMPLER_ARG
  value: {{ .sampleRatio | toJson | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* A variable from a secret: a list of its name, a block of `secrets`, and an entry of its keys. */}}
{{- define "headrace.env.secret" -}}
{{- $entry := index . 2 | trimSuffix "?" -}}
- name: {{ first . }}
  valueFrom:
    secretKeyRef:
      name: {{ (index . 1).name }}
      key: {{ index (index . 1).keys $entry }}
{{- if hasSuffix "?" (index . 2) }}
      optional: true
{{- end }}
{{- end -}}

{{/*
Where a service is found: a list of the root and its name. The name is that of a headless service, and clients spread
calls over all addresses behind it (round_robin, services/kit/grpc_client.py). A service with an address of its own
would tie each client to one pod: connections last, and kube-proxy spreads connections, not calls.
*/}}
{{- define "headrace.target" -}}
dns:///{{ include "headrace.fullname" (first .) }}-{{ last . }}:50051
{{- end -}}

{{- define "headrace.port" -}}
{{ hasKey .facts "http" | ternary 8080 50051 }}
{{- end -}}
