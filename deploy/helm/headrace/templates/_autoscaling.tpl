{{/* How many replicas: by CPU at the gateway, by what waits for workers and models. */}}

{{- define "headrace.hpa" -}}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ include "headrace.fullname" .root }}-{{ .name }}
  labels:
    {{- include "headrace.labels" (list .root .name) | nindent 4 }}
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: Deployment
    name: {{ include "headrace.fullname" .root }}-{{ .name }}
  minReplicas: {{ .svc.autoscaling.minReplicas }}
  maxReplicas: {{ .svc.autoscaling.maxReplicas }}
  metrics:
    - type: Resource
      resource:
        name: cpu
        target:
          type: Utilization
          averageUtilization: {{ .svc.autoscaling.cpuPercent }}
{{- end -}}

{{- define "headrace.scaledobject" -}}
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: {{ include "headrace.fullname" .root }}-{{ .name }}
  labels:
    {{- include "headrace.labels" (list .root .name) | nindent 4 }}
spec:
  scaleTargetRef:
    name: {{ include "headrace.fullname" .root }}-{{ .name }}
  minReplicaCount: {{ .svc.autoscaling.minReplicas }}
  maxReplicaCount: {{ .svc.autoscaling.maxReplicas }}
  pollingInterval: 15
  triggers:
    {{- range include (printf "headrace.triggers.%s" .name) . | fromYamlArray }}
    - type: prometheus
      metricType: {{ .type }}
      metadata:
        serverAddress: {{ $.root.Values.autoscaling.prometheusUrl | quote }}
        query: {{ .query | quote }}
        threshold: {{ .threshold | toJson | quote }}
    {{- end }}
{{- end -}}

{{/*
Every executor tells the whole backlog, so of their figures the largest counts; each worker tells its own jobs, which
are added up. Jobs under way count as well: else workers would be taken away as soon as all have their hands full.
*/}}
{{- define "headrace.triggers.worker" -}}
{{- $of := printf "namespace=%q" .root.Release.Namespace -}}
{{- $queues := $of -}}
{{- with .svc.settings.queues -}}
{{- $queues = printf "%s,queue=~%q" $of (regexReplaceAll "\\s*,\\s*" (trim .) "|") -}}
{{- end -}}
- type: AverageValue
  threshold: {{ .svc.autoscaling.jobsPerWorker }}
  query: sum(max by (queue) (headrace_executor_ready_nodes{ {{- $queues -}} })) + (sum(headrace_worker_jobs_running{ {{- $of -}} }) or vector(0))
# Twice as old as wanted: twice as many.
- type: Value
  threshold: {{ .svc.autoscaling.oldestSeconds }}
  query: max(headrace_executor_ready_oldest_seconds{ {{- $queues -}} })
{{- end -}}

{{/* One queue for each model in each replica. */}}
{{- define "headrace.triggers.llm" -}}
- type: AverageValue
  threshold: {{ .svc.autoscaling.queuedTokensPerReplica }}
  query: sum(headrace_llm_queued_tokens{namespace={{ .root.Release.Namespace | quote }}})
{{- end -}}
