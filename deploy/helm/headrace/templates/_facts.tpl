{{/*
What the chart knows of each service and nobody configures: the one table that environments, network policies, probes
and grace periods are made from.

  image       headrace-<image>
  command     the console script
  calls       the services it calls by gRPC: it gets their targets, and may reach them, and nobody else may
  postgresql  it has a schema of its own: it gets a URL, and a job migrates it
  nats        it gets a URL
  keys        environment variable -> entry of secrets.keys; those that end in ? may be missing from the secret
  stop        the longest time from SIGTERM to the end: `setting`, plus `seconds` for what follows it
  threads     it computes: OpenMP is told how many cores it has
*/}}
{{- define "headrace.facts" -}}
gateway:
  image: gateway
  command: headrace-gateway
  http: true
  calls: [auth, workflows, executor, llm, vector]
  keys:
    HEADRACE_INTERNAL_KEY: internalKey
    HEADRACE_PREVIOUS_INTERNAL_KEYS: previousInternalKeys?
  stop: {setting: stop_timeout_seconds, seconds: 5}
auth:
  image: auth
  command: headrace-auth
  postgresql: true
  keys:
    HEADRACE_INTERNAL_KEY: internalKey
    HEADRACE_PREVIOUS_INTERNAL_KEYS: previousInternalKeys?
    HEADRACE_AUTH_SIGNING_KEY: signingKey
    HEADRACE_AUTH_PREVIOUS_PUBLIC_KEYS: previousPublicKeys?
    HEADRACE_AUTH_PEPPER: pepper
    HEADRACE_AUTH_CREDENTIAL_KEY: credentialKey
    HEADRACE_AUTH_PREVIOUS_CREDENTIAL_KEYS: previousCredentialKeys?
  stop: {seconds: 15} # 10 for calls under way
workflows:
  image: workflows
  command: headrace-workflows
  postgresql: true
  calls: [executor]
  keys:
    HEADRACE_INTERNAL_KEY: internalKey
    HEADRACE_PREVIOUS_INTERNAL_KEYS: previousInternalKeys?
  stop: {seconds: 15}
executor:
  image: executor
  command: headrace-executor
  postgresql: true
  nats: true
  calls: [workflows]
  keys:
    HEADRACE_INTERNAL_KEY: internalKey
    HEADRACE_PREVIOUS_INTERNAL_KEYS: previousInternalKeys?
  stop: {seconds: 25} # 10 for calls under way, then commits that wait
worker:
  image: executor
  command: headrace-worker
  nats: true
  calls: [auth, executor, llm, vector]
  stop: {setting: drain_seconds, seconds: 15} # 4 for the last reports, 1 more for the process of suspects, 10 for the port
llm:
  image: llm
  command: headrace-llm
  threads: true
  keys:
    HEADRACE_INTERNAL_KEY: internalKey
    HEADRACE_PREVIOUS_INTERNAL_KEYS: previousInternalKeys?
  stop: {setting: stop_seconds, seconds: 10}
vector:
  image: vector
  command: headrace-vector
  postgresql: true
  calls: [llm]
  threads: true
  keys:
    HEADRACE_INTERNAL_KEY: internalKey
    HEADRACE_PREVIOUS_INTERNAL_KEYS: previousInternalKeys?
  stop: {seconds: 30} # 10 for calls under way, 8 to write indexes, 5 for the pool
{{- end -}}

{{/* A service's values over the defaults: a list of the root and its name. `replicated`: whether it has several pods. */}}
{{- define "headrace.service" -}}
{{- $values := (first .).Values -}}
{{- $svc := mustMergeOverwrite (dict "autoscaling" (dict "enabled" false)) (deepCopy $values.defaults) (deepCopy (index $values.services (last .))) -}}
{{- $fewest := ternary $svc.autoscaling.minReplicas $svc.replicas $svc.autoscaling.enabled -}}
{{- dict "svc" $svc "replicated" (gt (int $fewest) 1) | toYaml -}}
{{- end -}}
