{{/* The address of a service; none for workers, whom nobody calls. */}}

{{- define "headrace.service.object" -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ include "headrace.fullname" .root }}-{{ .name }}
  labels:
    {{- include "headrace.labels" (list .root .name) | nindent 4 }}
  {{- if .facts.http }}
  {{- with .root.Values.gatewayService.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- end }}
spec:
  {{- if .facts.http }}
  type: {{ .root.Values.gatewayService.type }}
  {{- else }}
  # Headless: see "headrace.target".
  clusterIP: None
  {{- end }}
  selector:
    {{- include "headrace.selector" (list .root .name) | nindent 4 }}
  ports:
    {{- if .facts.http }}
    - name: http
      port: {{ .root.Values.gatewayService.port }}
      targetPort: http
    {{- else }}
    - name: grpc
      port: 50051
      targetPort: grpc
    {{- end }}
{{- end -}}

{{- define "headrace.serviceaccount" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "headrace.fullname" .root }}-{{ .name }}
  labels:
    {{- include "headrace.labels" (list .root .name) | nindent 4 }}
  {{- with .svc.serviceAccountAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: false
{{- end -}}
