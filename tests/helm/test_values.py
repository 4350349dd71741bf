"""Wrong values are refused before anything is installed, with a sentence that says what to change."""

from __future__ import annotations

import re

import helm_python
import pytest

from tests.helm.rendering import CHART, changed

SEVERAL = {"name": "m", "model": "o/m", "image": "vllm:1", "replicas": 2, "cache": {"size": "10Gi"}} | {
    "resources": {"requests": {"cpu": 1, "memory": "1Gi"}, "limits": {"cpu": 1, "memory": "1Gi"}}
}
SENTENCES = [
    ({"secrets.postgresql.name": ""}, "secrets.postgresql.name is missing: name the secret"),
    ({"secrets.nats.name": ""}, "secrets.nats.name is missing: name the secret"),
    ({"secrets.keys.name": ""}, "secrets.keys.name is missing: name the secret"),
    ({"networkPolicy.dns.to": []}, "networkPolicy.dns.to is empty: say where it is"),
    ({"networkPolicy.postgresql.to": []}, "networkPolicy.postgresql.to is empty: say where it is"),
    ({"networkPolicy.nats.to": []}, "networkPolicy.nats.to is empty: say where it is"),
    (
        {"tracing.otlpEndpoint": "http://collector:4317"},
        "networkPolicy.otlp.to is empty, but tracing.otlpEndpoint is set: say where the collector is",
    ),
    ({"llm.download": True}, "llm.download is true, but networkPolicy.publicInternet.llm is false"),
    (
        {"llm.models": [{"name": "m", "backend": "openai"}], "llm.modelsSecret.name": "models"},
        "llm.models and llm.modelsSecret are both set: list all models in one of them.",
    ),
    (
        {"llm.models": [{"name": "gpt", "backend": "openai", "api_key": "s"}]},
        'llm.models: "gpt" has an api_key, which everybody who reads the config map would see',
    ),
    ({"vllm": [SEVERAL]}, 'vllm: "m" has several replicas, but a cache that one node may mount'),
    (
        {"services.gateway.autoscaling": {"enabled": True, "minReplicas": 5, "maxReplicas": 4}},
        "services.gateway.autoscaling: minReplicas (5) is more than maxReplicas (4).",
    ),
    (
        {"services.worker.autoscaling.enabled": True},
        "services.worker.autoscaling is on, but autoscaling.prometheusUrl is missing",
    ),
    (
        {"services.llm.autoscaling.enabled": True},
        "services.llm.autoscaling is on, but autoscaling.prometheusUrl is missing",
    ),
    ({"ingress.enabled": True}, "ingress.host is missing: name the host"),
    (
        {"ingress": {"enabled": True, "host": "h", "certManager": {"issuer": "i"}}},
        "ingress.certManager names an issuer, but ingress.tlsSecret is missing",
    ),
    (
        {
            "ingress": {
                **{"enabled": True, "host": "h", "tlsSecret": "t"},
                "certManager": {"issuer": "i", "clusterIssuer": "c"},
            }
        },
        "ingress.certManager: name an issuer or a clusterIssuer, not both.",
    ),
    ({"httpRoute.enabled": True}, "httpRoute.parentRefs is empty: name the Gateway"),
]
REFUSED = [
    ({"replicas": 3}, "additional properties 'replicas' not allowed"),
    ({"services.gateway.replica": 3}, "/services/gateway/replica"),
    ({"services.gateway.replicas": "three"}, "/services/gateway/replicas"),
    ({"services.schedule": {}}, "additional properties 'schedule' not allowed"),
    ({"services.worker.settings.slot": 3}, "additional properties 'slot' not allowed"),
    ({"services.worker.settings.slots": 0}, "/services/worker/settings/slots': minimum: got 0, want 1"),
    ({"services.worker.settings.listen": "x"}, "additional properties 'listen' not allowed"),
    ({"services.worker.settings.drain_seconds": None}, "missing property 'drain_seconds'"),
    ({"services.auth.autoscaling": {"enabled": True}}, "/services/auth/autoscaling"),
    ({"services.worker.autoscaling.minReplicas": 0}, "/services/worker/autoscaling/minReplicas"),
    ({"services.auth.resources.limits.memory": None}, "missing property 'memory'"),
    ({"services.auth.image": {"digest": "latest"}}, "/services/auth/image/digest"),
    ({"image.registry": "registry.example.com/"}, "/image/registry"),
    ({"image.pullPolicy": "Sometimes"}, "/image/pullPolicy"),
    ({"logging.level": "loud"}, "/logging/level"),
    ({"tracing.sampleRatio": 2}, "/tracing/sampleRatio"),
    ({"tracing.otlpEndpoint": "collector:4317"}, "/tracing/otlpEndpoint"),
    ({"networkPolicy.nats.to": [{}]}, "/networkPolicy/nats/to/0"),
    ({"networkPolicy.publicInternet.exceptCluster": ["pods"]}, "/networkPolicy/publicInternet/exceptCluster/0"),
    ({"egress.allow": ["10.0.0.1"]}, "/egress/allow/0"),
    ({"llm.models": [{"name": "m"}]}, "missing property 'backend'"),
    ({"vllm": [{"name": "m"}]}, "missing properties"),
    ({"vllm": [{**SEVERAL, "name": "Qwen/Qwen3"}]}, "/vllm/0/name"),
]


@pytest.mark.parametrize(("changes", "sentence"), SENTENCES, ids=[sentence for _, sentence in SENTENCES])
def test_values_that_cannot_work_together_are_refused_with_a_sentence(changes, sentence):
    with pytest.raises(helm_python.HelmRenderError, match=re.escape(sentence)):
        changed(changes)


@pytest.mark.parametrize(("changes", "place"), REFUSED, ids=[str(changes) for changes, _ in REFUSED])
def test_values_that_the_schema_does_not_know_are_refused_with_their_place(changes, place):
    with pytest.raises(helm_python.HelmValuesError, match=re.escape(place)):
        changed(changes)


def test_every_sentence_of_the_validations_is_tested():
    template = (CHART / "templates" / "_validations.tpl").read_text()
    written = re.findall(r'fail (?:\(printf )?"((?:[^"\\]|\\.)*)"', template)
    assert len(written) == len(re.findall(r"\bfail\b", template))
    said = [_refusal(changes) for changes, _ in SENTENCES]
    for sentence in written:
        pattern = re.sub(r"%[sqv]", ".+", re.escape(sentence))
        assert any(re.search(pattern, each) for each in said), sentence


def _refusal(changes: dict[str, object]) -> str:
    with pytest.raises(helm_python.HelmRenderError) as caught:
        changed(changes)
    return str(caught.value)
