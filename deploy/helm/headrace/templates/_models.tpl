{{/* The list of models of the llm service: those of `llm.models`, and one for each entry of `vllm`. */}}

{{- define "headrace.llm.models" -}}
{{- $models := .Values.llm.models -}}
{{- if not .Values.llm.modelsSecret.name -}}
{{- range .Values.vllm -}}
{{- $entry := dict "name" .name "backend" "openai" "model" .name "base_url" (printf "http://%s:8000/v1" (include "headrace.vllm.name" (list $ .))) -}}
{{- $models = append $models (mustMergeOverwrite $entry (.modelSettings | default dict)) -}}
{{- end -}}
{{- end -}}
{{- with $models -}}
{{- toPrettyJson . -}}
{{- end -}}
{{- end -}}

{{- define "headrace.llm.modelsVolume" -}}
{{- if .Values.llm.modelsSecret.name -}}
secret:
  secretName: {{ .Values.llm.modelsSecret.name }}
  items:
    - key: {{ .Values.llm.modelsSecret.key }}
      path: {{ .Values.llm.modelsSecret.key }}
{{- else if include "headrace.llm.models" . -}}
configMap:
  name: {{ include "headrace.fullname" . }}-models
{{- end -}}
{{- end -}}

{{- define "headrace.llm.modelsKey" -}}
{{ ternary .Values.llm.modelsSecret.key "models.json" (ne .Values.llm.modelsSecret.name "") }}
{{- end -}}

{{- define "headrace.vllm.name" -}}
{{- printf "%s-vllm-%s" (include "headrace.fullname" (first .)) (last .).name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
