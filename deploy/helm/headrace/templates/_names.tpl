{{/* Names, labels and images. */}}

{{/* 40 characters leave room for the longest suffix within the 63 of a label. */}}
{{- define "headrace.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What selects every pod of the release. */}}
{{- define "headrace.releaseLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* What selects one service's pods: a list of the root and the component. */}}
{{- define "headrace.selector" -}}
{{ include "headrace.releaseLabels" (first .) }}
app.kubernetes.io/component: {{ last . }}
{{- end -}}

{{/* All labels of an object: a list of the root and the component. */}}
{{- define "headrace.labels" -}}
{{- $root := first . -}}
{{ include "headrace.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name ($root.Chart.Version | replace "+" "_") }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "headrace.image" -}}
{{- $all := .root.Values.image -}}
{{- $own := .svc.image -}}
{{- $repository := $own.repository | default (printf "headrace-%s" .facts.image) -}}
{{- $path := ternary (printf "%s/%s" $all.registry $repository) $repository (ne $all.registry "") -}}
{{- if $own.digest -}}
{{- printf "%s@%s" $path $own.digest -}}
{{- else -}}
{{- printf "%s:%s" $path ($own.tag | default $all.tag | default .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}
