"""The chart's documents say what the chart does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import helm_python
import yaml

from tests.helm.rendering import CHART, SERVICES, values_of
from tools import chart as tool


def test_the_schema_and_the_readme_agree_with_the_settings_and_the_values():
    assert (CHART / "values.schema.json").read_text() == tool.schema(), "run `python -m tools.chart`"
    assert (CHART / "README.md").read_text() == tool.readme(), "run `python -m tools.chart`"


def test_every_value_has_a_sentence():
    commented = {path for path, _, _ in tool.documented_values()}
    for path in _leaves(yaml.safe_load((CHART / "values.yaml").read_text())):
        names = path.split(".")
        above = {".".join(names[:count]) for count in range(1, len(names) + 1)}
        above -= {f"services.{service}" for service in SERVICES}
        of_defaults = f"defaults.{names[2]}" if names[0] == "services" else ""
        assert above & commented or of_defaults in commented, path


def test_helm_finds_nothing_to_say_against_the_chart():
    findings = helm_python.lint(CHART, values=values_of("ha"))
    assert findings["errors"] == []
    assert [each for each in findings["messages"] if each["severity"] > 1] == []  # 1: there is no icon


def _leaves(block: dict[str, Any], path: str = "") -> Iterator[str]:
    for key, value in block.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield path + key
