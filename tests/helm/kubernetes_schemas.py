"""JSON schemas of Kubernetes' objects, from `kubernetes-validate`; of operators' objects, what the chart uses."""

from __future__ import annotations

import importlib.resources
import json
import re
from functools import cache
from typing import Any

import jsonschema_rs

VERSION = "1.37.0"
_LABELS = {"type": "object", "additionalProperties": {"type": "string", "maxLength": 63}}


def _custom(spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {
        "type": "object",
        "required": ["name", "labels"],
        "properties": {"name": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}, "labels": _LABELS},
    }
    return {
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "additionalProperties": False,
        "properties": {"apiVersion": {}, "kind": {}, "metadata": metadata, "spec": _closed(spec)},
    }


def _closed(properties: dict[str, Any], *optional: str) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


_STRING, _NUMBER = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0}


def _several(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": item}


_NUMERAL = {"type": "string", "pattern": "^[0-9.]+$"}
_TRIGGER = _closed(
    {
        "type": {"const": "prometheus"},
        "metricType": {"enum": ["AverageValue", "Value"]},
        # KEDA takes strings here.
        "metadata": _closed({"serverAddress": _STRING, "query": _STRING, "threshold": _NUMERAL}),
    }
)
_ENDPOINT = _closed(
    {
        "port": _STRING,
        "interval": _STRING,
        "relabelings": _several(
            _closed({"sourceLabels": _several(_STRING), "targetLabel": _STRING, "replacement": _STRING})
        ),
    }
)
_RULE = _closed(
    {
        **{"alert": _STRING, "record": _STRING, "expr": {"type": ["string", "integer"]}, "for": _STRING},
        **{"keep_firing_for": _STRING, "labels": _LABELS, "annotations": {"type": "object"}},
    },
    *("alert", "record", "for", "keep_firing_for", "labels", "annotations"),
)
_CUSTOM: dict[tuple[str, str], dict[str, Any]] = {
    ("keda.sh/v1alpha1", "ScaledObject"): _custom(
        {
            "scaleTargetRef": _closed({"name": _STRING}),
            "minReplicaCount": _NUMBER,
            "maxReplicaCount": _NUMBER,
            "pollingInterval": _NUMBER,
            "triggers": _several(_TRIGGER),
        }
    ),
    ("monitoring.coreos.com/v1", "ServiceMonitor"): _custom(
        {"selector": _closed({"matchLabels": _LABELS}), "endpoints": _several(_ENDPOINT)}
    ),
    ("monitoring.coreos.com/v1", "PrometheusRule"): _custom(
        {"groups": _several(_closed({"name": _STRING, "interval": _STRING, "rules": _several(_RULE)}, "interval"))}
    ),
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): _custom(
        {
            "parentRefs": _several({"type": "object", "required": ["name"]}),
            "hostnames": _several(_STRING),
            "rules": _several(
                _closed(
                    {
                        "backendRefs": _several(_closed({"name": _STRING, "port": _NUMBER})),
                        "timeouts": _closed({"request": _STRING}),
                    }
                )
            ),
        }
    ),
}


def errors_in(manifest: dict[str, Any]) -> list[str]:
    """What a manifest's schema says against it; unknown fields are errors."""
    validator = _validator(manifest["apiVersion"], manifest["kind"])
    return [f"{error.instance_path}: {error.message}" for error in validator.iter_errors(manifest)]


@cache
def _validator(api_version: str, kind: str) -> Any:
    if schema := _CUSTOM.get((api_version, kind)):
        return jsonschema_rs.validator_for(schema)
    # The wheel's names: deployment-apps-v1.json, ingress-networking-v1.json, service-v1.json.
    version = re.sub(r"^([^./]*)[^/]*/", r"\1-", api_version)
    name = f"{kind.lower()}-{version}.json"
    return jsonschema_rs.validator_for({"$id": "file:///schema.json", **_read(name)}, registry=_definitions())


@cache
def _definitions() -> jsonschema_rs.Registry:
    return jsonschema_rs.Registry([("file:///_definitions.json", _read("_definitions.json"))])


def _read(name: str) -> dict[str, Any]:
    folder = importlib.resources.files("kubernetes_validate") / "kubernetes-json-schema" / f"v{VERSION}-local-strict"
    content: dict[str, Any] = json.loads((folder / name).read_text())
    return content
