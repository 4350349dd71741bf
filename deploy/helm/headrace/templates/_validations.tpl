{{/* What the schema of the values cannot say. Each line ends in a sentence that says what is wrong and what to do. */}}

{{- define "headrace.validate" -}}
{{- $v := .Values -}}

{{- if not $v.secrets.postgresql.name -}}
{{- fail "secrets.postgresql.name is missing: name the secret that holds the URLs of PostgreSQL, one for each of auth, workflows, executor and vector." -}}
{{- end -}}
{{- if not $v.secrets.nats.name -}}
{{- fail "secrets.nats.name is missing: name the secret that holds the URLs of NATS, one for the executor and one for workers." -}}
{{- end -}}
{{- if not $v.secrets.keys.name -}}
{{- fail "secrets.keys.name is missing: name the secret that holds the internal key, the signing key, the pepper and the credential key." -}}
{{- end -}}

{{- if $v.networkPolicy.enabled -}}
{{- range $what := list "dns" "postgresql" "nats" -}}
{{- if not (index $v.networkPolicy $what).to -}}
{{- fail (printf "networkPolicy.%s.to is empty: say where it is, by ipBlock or by selectors, or set networkPolicy.enabled to false." $what) -}}
{{- end -}}
{{- end -}}
{{- if and $v.tracing.otlpEndpoint (not $v.networkPolicy.otlp.to) -}}
{{- fail "networkPolicy.otlp.to is empty, but tracing.otlpEndpoint is set: say where the collector is, by ipBlock or by selectors." -}}
{{- end -}}
{{- if and $v.llm.download (not $v.networkPolicy.publicInternet.llm) -}}
{{- fail "llm.download is true, but networkPolicy.publicInternet.llm is false: the llm service cannot reach the hub. Set both, or neither." -}}
{{- end -}}
{{- end -}}

{{- if and $v.llm.models $v.llm.modelsSecret.name -}}
{{- fail "llm.models and llm.modelsSecret are both set: list all models in one of them." -}}
{{- end -}}
{{- range $v.llm.models -}}
{{- if hasKey . "api_key" -}}
{{- fail (printf "llm.models: %q has an api_key, which everybody who reads the config map would see: put the list into a secret and name it in llm.modelsSecret." .name) -}}
{{- end -}}
{{- end -}}
{{- range $v.vllm -}}
{{- $cache := .cache | default dict -}}
{{- if and (gt (int (.replicas | default 1)) 1) $cache.size (ne ($cache.accessMode | default "ReadWriteOnce") "ReadWriteMany") -}}
{{- fail (printf "vllm: %q has several replicas, but a cache that one node may mount: set cache.accessMode to ReadWriteMany, or leave cache out." .name) -}}
{{- end -}}
{{- end -}}

{{- range $name, $_ := include "headrace.facts" . | fromYaml -}}
{{- $service := include "headrace.service" (list $ $name) | fromYaml -}}
{{- $scaling := $service.svc.autoscaling -}}
{{- if $scaling.enabled -}}
{{- if gt (int $scaling.minReplicas) (int $scaling.maxReplicas) -}}
{{- fail (printf "services.%s.autoscaling: minReplicas (%v) is more than maxReplicas (%v)." $name $scaling.minReplicas $scaling.maxReplicas) -}}
{{- end -}}
{{- if and (has $name (list "worker" "llm")) (not $v.autoscaling.prometheusUrl) -}}
{{- fail (printf "services.%s.autoscaling is on, but autoscaling.prometheusUrl is missing: KEDA asks Prometheus what waits." $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- if $v.ingress.enabled -}}
{{- if not $v.ingress.host -}}
{{- fail "ingress.host is missing: name the host under which the API is reached." -}}
{{- end -}}
{{- if and (or $v.ingress.certManager.issuer $v.ingress.certManager.clusterIssuer) (not $v.ingress.tlsSecret) -}}
{{- fail "ingress.certManager names an issuer, but ingress.tlsSecret is missing: cert-manager puts the certificate there." -}}
{{- end -}}
{{- if and $v.ingress.certManager.issuer $v.ingress.certManager.clusterIssuer -}}
{{- fail "ingress.certManager: name an issuer or a clusterIssuer, not both." -}}
{{- end -}}
{{- end -}}
{{- if and $v.httpRoute.enabled (not $v.httpRoute.parentRefs) -}}
{{- fail "httpRoute.parentRefs is empty: name the Gateway that the route belongs to." -}}
{{- end -}}
{{- end -}}
