"""The chart as Helm's own engine renders it, and what tests ask of the manifests."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import yaml

CHART = Path(__file__).resolve().parents[2] / "deploy" / "helm" / "headrace"
SIZES = ("dev", "small", "ha")
"""The files of ci/, each a whole installation."""
SERVICES = ("gateway", "auth", "workflows", "executor", "worker", "llm", "vector")
NAMESPACE, RELEASE = "apps", "headrace"
COMPONENT = "app.kubernetes.io/component"

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Release:
    """Everything that one installation would send to Kubernetes."""

    manifests: tuple[Manifest, ...]
    notes: str

    def of(self, *kinds: str) -> list[Manifest]:
        return [each for each in self.manifests if each["kind"] in kinds]

    def one(self, kind: str, name: str) -> Manifest:
        """The one of this kind and name; names are without the release's."""
        (found,) = (each for each in self.of(kind) if each["metadata"]["name"] == f"{RELEASE}-{name}".rstrip("-"))
        return found

    def workload(self, service: str) -> Manifest:
        return self.one("StatefulSet" if service == "vector" else "Deployment", service)

    def pods(self) -> Iterator[tuple[str, Manifest]]:
        """Name of the owner and pod template of all that runs pods."""
        for each in self.of("Deployment", "StatefulSet", "Job"):
            yield each["metadata"]["name"], each["spec"]["template"]

    def container(self, service: str) -> Manifest:
        (container,) = self.workload(service)["spec"]["template"]["spec"]["containers"]
        assert isinstance(container, dict)
        return container


def values_of(size: str) -> dict[str, Any]:
    """The values of ci/<size>-values.yaml."""
    values: dict[str, Any] = yaml.safe_load((CHART / "ci" / f"{size}-values.yaml").read_text())
    return values


def with_changes(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the values with others by dotted path; a None leaves out what the chart has by default."""
    changed = copy.deepcopy(dict(values))
    for path, value in changes.items():
        *blocks, last = path.split(".")
        block = changed
        for name in blocks:
            block = block.setdefault(name, {})
        block[last] = value
    return changed


@cache
def release(size: str) -> Release:
    """The installation of one size."""
    return render(values_of(size))


def changed(changes: Mapping[str, Any], size: str = "dev") -> Release:
    """The installation of one size, with other values by dotted path."""
    return render(with_changes(values_of(size), changes))


def render(values: Mapping[str, Any], chart: Path = CHART) -> Release:
    """What Helm renders; raises HelmError."""
    with helm_python.Chart.load(chart) as loaded:
        files = loaded.render(dict(values), name=RELEASE, namespace=NAMESPACE, is_install=True)
    notes = "".join(text for path, text in files.items() if path.endswith("NOTES.txt"))
    documents = (
        document
        for path, text in files.items()
        if not path.endswith("NOTES.txt")
        for document in yaml.safe_load_all(text)
    )
    return Release(tuple(document for document in documents if document), notes)
