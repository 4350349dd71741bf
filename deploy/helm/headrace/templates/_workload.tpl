{{/* What runs a service's pods: a Deployment, or a StatefulSet where each pod has files of its own. */}}

{{- define "headrace.workload" -}}
{{- $object := include (eq .name "vector" | ternary "headrace.statefulset" "headrace.deployment") . | fromYaml -}}
{{- mustMergeOverwrite $object .svc.merge | toYaml -}}
{{- end -}}

{{- define "headrace.deployment" -}}
apiVersion: apps/v1
kind: Deployment
{{ include "headrace.workload.head" . }}
  strategy:
    type: RollingUpdate
    rollingUpdate:
      maxUnavailable: 0
      maxSurge: 1
  template:
    {{- include "headrace.podTemplate" . | nindent 4 }}
{{- end -}}

{{- define "headrace.statefulset" -}}
apiVersion: apps/v1
kind: StatefulSet
{{ include "headrace.workload.head" . }}
  serviceName: {{ include "headrace.fullname" .root }}-{{ .name }}
  # The pods know nothing of each other.
  podManagementPolicy: Parallel
  template:
    {{- include "headrace.podTemplate" . | nindent 4 }}
  {{- with .root.Values.vector.persistence }}
  {{- if .enabled }}
  # Index files are made anew from PostgreSQL, so claims may go with what they were for.
  persistentVolumeClaimRetentionPolicy:
    whenDeleted: Delete
    whenScaled: Delete
  volumeClaimTemplates:
    - metadata:
        name: indexes
      spec:
        accessModes: [ReadWriteOnce]
        {{- with .storageClassName }}
        storageClassName: {{ . }}
        {{- end }}
        resources:
          requests:
            storage: {{ .size }}
  {{- end }}
  {{- end }}
{{- end -}}

{{- define "headrace.workload.head" -}}
metadata:
  name: {{ include "headrace.fullname" .root }}-{{ .name }}
  labels:
    {{- include "headrace.labels" (list .root .name) | nindent 4 }}
spec:
  {{- if not .svc.autoscaling.enabled }}
  replicas: {{ .svc.replicas }}
  {{- end }}
  revisionHistoryLimit: 3
  selector:
    matchLabels:
      {{- include "headrace.selector" (list .root .name) | nindent 6 }}
{{- end -}}
