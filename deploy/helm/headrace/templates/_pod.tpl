{{/* The pod of a service, and the parts of it that every pod of the chart shares. */}}

{{- define "headrace.podTemplate" -}}
metadata:
  labels:
    {{- include "headrace.labels" (list .root .name) | nindent 4 }}
    {{- with .svc.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- $checksum := "" }}
  {{- if and (eq .name "llm") (include "headrace.llm.models" .root) }}
  {{- $checksum = include "headrace.llm.models" .root | sha256sum }}
  {{- end }}
  {{- if or $checksum .svc.podAnnotations }}
  annotations:
    {{- with $checksum }}
    checksum/config: {{ . }}
    {{- end }}
    {{- with .svc.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
spec:
  {{- include "headrace.podBase" . | nindent 2 }}
  serviceAccountName: {{ include "headrace.fullname" .root }}-{{ .name }}
  terminationGracePeriodSeconds: {{ include "headrace.graceSeconds" . }}
  topologySpreadConstraints:
    {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
    - topologyKey: {{ . }}
      maxSkew: 1
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "headrace.selector" (list $.root $.name) | nindent 10 }}
    {{- end }}
  containers:
    - name: {{ .name }}
      {{- include "headrace.container" . | nindent 6 }}
  volumes:
    {{- include "headrace.volumes" . | nindent 4 }}
{{- end -}}

{{/* What all pods have: nothing that the restricted Pod Security Standard forbids, and no way to the API server. */}}
{{- define "headrace.podBase" -}}
automountServiceAccountToken: false
# Else each HEADRACE_… variable would have a namesake such as HEADRACE_AUTH_PORT, made from the services.
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .svc.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .svc.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .svc.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .svc.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "headrace.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "headrace.container" -}}
image: {{ include "headrace.image" . }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
command: [{{ .facts.command }}]
securityContext:
  {{- include "headrace.containerSecurity" . | nindent 2 }}
env:
  {{- include "headrace.env" . | nindent 2 }}
ports:
  - name: {{ hasKey .facts "http" | ternary "http" "grpc" }}
    containerPort: {{ include "headrace.port" . }}
  - name: metrics
    containerPort: 9090
{{ include "headrace.probes" . }}
{{- with .svc.preStopSeconds }}
lifecycle:
  preStop:
    sleep:
      seconds: {{ . }}
{{- end }}
resources:
  {{- toYaml .svc.resources | nindent 2 }}
volumeMounts:
  {{- include "headrace.volumeMounts" . | nindent 2 }}
{{- end -}}

{{/*
Ready is who can serve; alive is who accepts connections. The health service also says no while PostgreSQL is away:
killing the process for that would only add a restart to it. A worker whose loop stands still ends by itself.
*/}}
{{- define "headrace.probes" -}}
{{- $port := include "headrace.port" . -}}
startupProbe:
  {{- if .facts.http }}
  httpGet: {path: /healthz, port: http}
  {{- else }}
  tcpSocket: {port: grpc}
  {{- end }}
  periodSeconds: 2
  # Two minutes; ten where large libraries and models are loaded.
  failureThreshold: {{ eq .name "llm" | ternary 300 60 }}
livenessProbe:
  {{- if .facts.http }}
  httpGet: {path: /healthz, port: http}
  {{- else }}
  tcpSocket: {port: grpc}
  {{- end }}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  {{- if .facts.http }}
  httpGet: {path: /readyz, port: http}
  {{- else }}
  grpc: {port: {{ $port }}}
  {{- end }}
  periodSeconds: 5
  timeoutSeconds: 4
  # /readyz asks every service: what has one replica may be replaced without taking the API with it.
  failureThreshold: {{ hasKey .facts "http" | ternary 6 2 }}
{{- end -}}

{{/* preStop, the longest stop by the service's own settings, and a margin for a busy node. */}}
{{- define "headrace.graceSeconds" -}}
{{- $own := 0 -}}
{{- with .facts.stop.setting -}}
{{- $own = ceil (index $.svc.settings .) -}}
{{- end -}}
{{- add .svc.preStopSeconds $own .facts.stop.seconds 10 -}}
{{- end -}}

{{- define "headrace.volumes" -}}
- name: tmp
  emptyDir:
    sizeLimit: {{ .svc.tmpSize }}
{{- if eq .name "vector" }}
{{- if not .root.Values.vector.persistence.enabled }}
- name: indexes
  emptyDir:
    sizeLimit: {{ .root.Values.vector.persistence.size }}
{{- end }}
{{- else if eq .name "llm" }}
{{- with .root.Values.llm.cache }}
- name: cache
  {{- if .existingClaim }}
  persistentVolumeClaim:
    claimName: {{ .existingClaim }}
  {{- else }}
  emptyDir:
    sizeLimit: {{ .size }}
  {{- end }}
{{- end }}
{{- with include "headrace.llm.modelsVolume" .root }}
- name: models
  {{- . | nindent 2 }}
{{- end }}
{{- end }}
{{- with .svc.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "headrace.volumeMounts" -}}
- name: tmp
  mountPath: /tmp
{{- if eq .name "vector" }}
- name: indexes
  mountPath: /var/lib/headrace
{{- else if eq .name "llm" }}
- name: cache
  mountPath: /var/cache/headrace
{{- if include "headrace.llm.modelsVolume" .root }}
- name: models
  mountPath: /etc/headrace
  readOnly: true
{{- end }}
{{- end }}
{{- with .svc.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}
