"""Writes what the Helm chart says twice, or with --check fails when it differs.

The schema of the values gets the services' settings from their classes. The chart's README gets a table of the values
from the comments in values.yaml, and one of what an entry of `vllm` has from the schema.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic_settings import BaseSettings

from services.auth import settings as auth
from services.executor import settings as executor
from services.executor.worker import settings as worker
from services.gateway import settings as gateway
from services.llm import settings as llm
from services.vector import settings as vector
from services.workflows import settings as workflows

CHART = Path(__file__).resolve().parent.parent / "deploy" / "helm" / "headrace"
SETTINGS: dict[str, type[BaseSettings]] = {
    "gateway": gateway.Settings,
    "auth": auth.Settings,
    "workflows": workflows.Settings,
    "executor": executor.Settings,
    "worker": worker.Settings,
    "llm": llm.LlmSettings,
    "vector": vector.Settings,
}
SET_BY_CHART = {
    *("listen", "metrics_listen", "postgres_url", "index_dir", "HEADRACE_LLM_TARGET"),
    *("signing_key", "previous_public_keys", "pepper", "credential_key", "previous_credential_keys"),
    *("token_issuer", "token_audience", "issuer", "audience"),
    *("models", "models_file"),
}
"""What templates/_env.tpl sets from other values."""


def schema() -> str:
    """The schema of the values, with the settings of today."""
    content = json.loads((CHART / "values.schema.json").read_text())
    for service, kind in SETTINGS.items():
        properties = kind.model_json_schema()["properties"]
        content["$defs"][f"{service}Settings"] = {
            "type": "object",
            "additionalProperties": False,
            "properties": {name: _plain(value) for name, value in properties.items() if name not in SET_BY_CHART},
        }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    return {key: part for key, part in value.items() if key not in ("title", "format", "writeOnly")}


def readme() -> str:
    """The chart's README, with the tables of today."""
    entry = json.loads((CHART / "values.schema.json").read_text())["properties"]["vllm"]["items"]
    fields = [
        f"| `{name}` | {'required' if name in entry['required'] else ''} | {field['description']} |\n"
        for name, field in entry["properties"].items()
    ]
    values = [f"| `{key}` | {default} | {sentence} |\n" for key, default, sentence in documented_values()]
    text = (CHART / "README.md").read_text()
    for name, head, rows in (("values", "value | default", values), ("vllm", "key | ", fields)):
        starts, ends = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
        before, rest = text.split(starts)
        table = f"| {head} | meaning |\n| --- | --- | --- |\n{''.join(rows)}"
        text = f"{before}{starts}\n{table}\n{ends}{rest.split(ends)[1]}"
    return text


def documented_values() -> list[tuple[str, str, str]]:
    """Path, default and comment of each commented value of values.yaml; of a block, the default is left out."""
    text = (CHART / "values.yaml").read_text()
    root = yaml.compose(text)
    assert isinstance(root, yaml.MappingNode)  # noqa: S101 - for the type checker
    return [*_documented(root, "", text.splitlines())]


def _documented(block: yaml.MappingNode, path: str, lines: list[str]) -> list[tuple[str, str, str]]:
    found = []
    for key, value in block.value:
        below = _documented(value, f"{path}{key.value}.", lines) if isinstance(value, yaml.MappingNode) else []
        if sentence := _comment_above(key.start_mark.line, lines):
            default = "" if below else f"`{json.dumps(yaml.safe_load(yaml.serialize(value)))}`"
            found.append((path + key.value, default, sentence))
        found += below
    return found


def _comment_above(number: int, lines: list[str]) -> str:
    words: list[str] = []
    while (line := lines[number - 1].strip()).startswith("# ") and not line.startswith("# ---"):
        words.insert(0, line[2:])
        number -= 1
    return " ".join(words)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail on a difference, change nothing")
    check = parser.parse_args().check
    for name, content in (("values.schema.json", schema()), ("README.md", readme())):
        target = CHART / name
        if not check:
            target.write_text(content)
        elif target.read_text() != content:
            sys.exit(f"{name} of the chart does not match its sources; run `python -m tools.chart`")


if __name__ == "__main__":
    main()
