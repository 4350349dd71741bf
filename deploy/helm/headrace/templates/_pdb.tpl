{{/* With one replica a budget would only keep nodes from being drained. */}}

{{- define "headrace.pdb" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "headrace.fullname" .root }}-{{ .name }}
  labels:
    {{- include "headrace.labels" (list .root .name) | nindent 4 }}
spec:
  maxUnavailable: 1
  # Pods that serve nobody hold up no drain.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "headrace.selector" (list .root .name) | nindent 6 }}
{{- end -}}
