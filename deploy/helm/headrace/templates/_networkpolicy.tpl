{{/* Who may talk to whom. Everything is denied first; each service then gets what "headrace.facts" says it needs. */}}

{{- define "headrace.networkpolicy.deny" -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ include "headrace.fullname" . }}-deny
  labels:
    {{- include "headrace.releaseLabels" . | nindent 4 }}
spec:
  podSelector:
    matchLabels:
      {{- include "headrace.releaseLabels" . | nindent 6 }}
  policyTypes: [Ingress, Egress]
{{- end -}}

{{/* One policy: a dict of root, name, and the lists of rules `ingress` and `egress`. DNS is for all. */}}
{{- define "headrace.networkpolicy" -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ include "headrace.fullname" .root }}-{{ .name }}
  labels:
    {{- include "headrace.labels" (list .root .name) | nindent 4 }}
spec:
  podSelector:
    matchLabels:
      {{- include "headrace.selector" (list .root .name) | nindent 6 }}
  policyTypes: [Ingress, Egress]
  {{- with .ingress }}
  ingress:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  egress:
    - to:
        {{- toYaml .root.Values.networkPolicy.dns.to | nindent 8 }}
      ports:
        - {port: 53, protocol: UDP}
        - {port: 53, protocol: TCP}
    {{- with .egress }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{- define "headrace.networkpolicy.service" -}}
{{- $policy := .root.Values.networkPolicy -}}
{{- $port := include "headrace.port" . | int -}}
{{- $ingress := list -}}
{{- $callers := list -}}
{{- range $caller, $facts := include "headrace.facts" .root | fromYaml -}}
{{- if has $.name ($facts.calls | default list) -}}
{{- $callers = append $callers (include "headrace.peer" (list $.root $caller) | fromYaml) -}}
{{- end -}}
{{- end -}}
{{- if .facts.http -}}
{{- $ingress = append $ingress (include "headrace.rule" (list "from" $policy.gateway.from $port) | fromYaml) -}}
{{- else if $callers -}}
{{- $ingress = append $ingress (include "headrace.rule" (list "from" $callers $port) | fromYaml) -}}
{{- end -}}
{{- with $policy.metrics.from -}}
{{- $ingress = append $ingress (include "headrace.rule" (list "from" . 9090) | fromYaml) -}}
{{- end -}}
{{- with $policy.nodes.from -}}
{{- $ingress = append $ingress (include "headrace.rule" (list "from" . $port) | fromYaml) -}}
{{- end -}}
{{- $egress := list -}}
{{- range .facts.calls -}}
{{- $peer := include "headrace.peer" (list $.root .) | fromYaml -}}
{{- $egress = append $egress (include "headrace.rule" (list "to" (list $peer) 50051) | fromYaml) -}}
{{- end -}}
{{- if .facts.postgresql -}}
{{- $egress = append $egress (include "headrace.rule" (list "to" $policy.postgresql.to $policy.postgresql.port) | fromYaml) -}}
{{- end -}}
{{- if .facts.nats -}}
{{- $egress = append $egress (include "headrace.rule" (list "to" $policy.nats.to $policy.nats.port) | fromYaml) -}}
{{- end -}}
{{- if .root.Values.tracing.otlpEndpoint -}}
{{- $egress = append $egress (include "headrace.rule" (list "to" $policy.otlp.to $policy.otlp.port) | fromYaml) -}}
{{- end -}}
{{- if eq .name "llm" -}}
{{- range .root.Values.vllm -}}
{{- $peer := include "headrace.peer" (list $.root (printf "vllm-%s" .name)) | fromYaml -}}
{{- $egress = append $egress (include "headrace.rule" (list "to" (list $peer) 8000) | fromYaml) -}}
{{- end -}}
{{- end -}}
{{- if get $policy.publicInternet .name -}}
{{- $egress = append $egress (include "headrace.publicInternet" .root | fromYaml) -}}
{{- end -}}
{{- $ingress = concat $ingress .svc.extraIngress -}}
{{- $egress = concat $egress .svc.extraEgress -}}
{{- include "headrace.networkpolicy" (dict "root" .root "name" .name "ingress" $ingress "egress" $egress) -}}
{{- end -}}

{{/* A rule of one port: a list of `from` or `to`, its peers, and the port. Without peers it would mean everybody. */}}
{{- define "headrace.rule" -}}
{{- $rule := dict "ports" (list (dict "port" (last .) "protocol" "TCP")) -}}
{{- with index . 1 -}}
{{- $_ := set $rule (first $) . -}}
{{- end -}}
{{- toYaml $rule -}}
{{- end -}}

{{- define "headrace.peer" -}}
podSelector:
  matchLabels:
    {{- include "headrace.selector" . | nindent 4 }}
{{- end -}}

{{/*
Every address that is nobody's inside: the pods whose users name where to connect to. The same addresses are refused by
services/executor/egress; this stands behind it for a handler that would not ask there.
*/}}
{{- define "headrace.publicInternet" -}}
{{- $policy := .Values.networkPolicy.publicInternet -}}
{{- $v4 := $policy.except -}}
{{- $v6 := $policy.exceptV6 -}}
{{- range $policy.exceptCluster -}}
{{- if contains ":" . -}}
{{- $v6 = append $v6 . -}}
{{- else -}}
{{- $v4 = append $v4 . -}}
{{- end -}}
{{- end -}}
to:
  - ipBlock:
      cidr: 0.0.0.0/0
      except:
        {{- toYaml $v4 | nindent 8 }}
  - ipBlock:
      # What is global (IANA).
      cidr: 2000::/3
      except:
        {{- toYaml $v6 | nindent 8 }}
{{- with $policy.ports }}
ports:
  {{- range . }}
  - {port: {{ . }}, protocol: TCP}
  {{- end }}
{{- end }}
{{- end -}}
