"""What Prometheus finds at the processes is what dashboards, alerts and the documentation speak of."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.client import User, node
from tests.support.stack import LocalStack
from tests.support.waiting import await_until

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = ROOT / "deploy" / "helm" / "headrace" / "files"
DASHBOARDS = sorted((FILES / "dashboards").glob("*.json"))
ALERTS = sorted((FILES / "alerts").glob("*.yaml"))
OBSERVABILITY = ROOT / "docs" / "operations" / "observability.md"
RUNBOOKS = ROOT / "docs" / "operations" / "runbooks.md"
_NAME = re.compile(r"\b(?:headrace|process)_[a-z0-9_]+")
Samples = dict[str, list[tuple[dict[str, str], float]]]


async def scrape(stack: LocalStack) -> tuple[dict[str, str], Samples]:
    """Families by name with their types, and samples, of all processes together."""
    families: dict[str, str] = {}
    samples: Samples = {}
    async with httpx.AsyncClient(trust_env=False) as client:
        for process in stack.state["processes"]:
            if "metrics" not in process:
                continue
            answer = await client.get(process["metrics"])
            assert answer.status_code == 200
            for family in text_string_to_metric_families(answer.text):
                families[family.name] = family.type
                for sample in family.samples:
                    labels = {**sample.labels, "job": f"headrace-{process['service']}"}
                    samples.setdefault(sample.name, []).append((labels, sample.value))
    return families, samples


@pytest.fixture(scope="module")
async def scraped(stack: LocalStack) -> tuple[dict[str, str], Samples]:
    """After a run that has called a model, and one that has failed."""
    user = await User.register(stack.gateway_url)
    try:
        done = await user.run(node("say", "llm_call", {"prompt": "Say one word.", "max_tokens": 4, "temperature": 0}))
        failed = await user.run(node("bad", "http_request", {"url": "http://127.0.0.1:9/"}))
        assert (done["status"], failed["status"]) == ("succeeded", "failed")
    finally:
        await user.http.aclose()

    async def surveyed() -> tuple[dict[str, str], Samples] | None:
        found = await scrape(stack)
        return found if "headrace_executor_ready_nodes" in found[1] else None

    found: tuple[dict[str, str], Samples] = await await_until(surveyed, within=20)
    return found


def exposed(families: dict[str, str]) -> set[str]:
    """The names by which queries may call them."""
    names: set[str] = set()
    for family, kind in families.items():
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(kind, ("",))
        names |= {family + suffix for suffix in suffixes}
    return names


def expressions(path: Path) -> list[str]:
    """All PromQL in a file."""
    if path.suffix == ".yaml":
        groups = yaml.safe_load(path.read_text())["groups"]
        return [rule["expr"] for group in groups for rule in group["rules"]]
    board: dict[str, Any] = json.loads(path.read_text())
    return [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]


@pytest.mark.parametrize("path", [*DASHBOARDS, *ALERTS], ids=lambda path: path.name)
async def test_every_metric_that_is_asked_for_exists(path: Path, scraped: tuple[dict[str, str], Samples]) -> None:
    asked = {name for text in expressions(path) for name in _NAME.findall(text)}
    assert asked
    assert asked - exposed(scraped[0]) == set()


async def test_the_documentation_lists_every_metric_with_its_type(scraped: tuple[dict[str, str], Samples]) -> None:
    rows = re.findall(r"^\| `(headrace_\w+?)(?:\{[a-z, ]+\})?` \| (\w+) \|", OBSERVABILITY.read_text(), re.MULTILINE)
    names = {f"{family}_total" if kind == "counter" else family: kind for family, kind in scraped[0].items()}
    assert dict(rows) == {name: kind for name, kind in names.items() if name.startswith("headrace_")}


async def test_runs_nodes_jobs_and_tokens_are_counted(scraped: tuple[dict[str, str], Samples]) -> None:
    _, samples = scraped

    def total(name: str, **wanted: str) -> float:
        return sum(value for labels, value in samples.get(name, ()) if wanted.items() <= labels.items())

    assert total("headrace_executor_runs_accepted_total") >= 2
    assert total("headrace_executor_run_duration_seconds_count", status="succeeded") >= 1
    assert total("headrace_executor_run_duration_seconds_count", status="failed") >= 1
    assert total("headrace_executor_nodes_finished_total", type="llm_call", outcome="succeeded") >= 1
    assert total("headrace_executor_nodes_finished_total", type="http_request", outcome="failed") >= 1
    assert total("headrace_executor_queued_seconds_count", queue="default") >= 2
    assert total("headrace_executor_worker_slots", queue="default") >= 2
    assert total("headrace_executor_executors") == 4, "two executors that see each other"
    assert total("headrace_worker_jobs_total", type="llm_call", outcome="success") >= 1
    assert total("headrace_worker_handler_seconds_count", type="llm_call") >= 1
    assert total("headrace_llm_calls_total", operation="generate", outcome="ok") >= 1
    assert total("headrace_llm_tokens_total", direction="completion") >= 1
    assert total("headrace_llm_call_duration_seconds_count", operation="generate") >= 1
    assert total("headrace_auth_logins_total", outcome="ok") >= 1
    assert total("headrace_nats_connected", job="headrace-worker") == 2
    assert total("headrace_postgres_up", job="headrace-auth") == 2
    assert total("headrace_executor_last_sweep_timestamp_seconds") > 0


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    rules = [rule for path in ALERTS for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]
    names = [rule["alert"] for rule in rules]
    assert len(names) == len(set(names))
    sections = re.findall(r"^## (Headrace\w+)$", RUNBOOKS.read_text(), re.MULTILINE)
    assert sorted(sections) == sorted(names)
    for rule in rules:
        assert rule["labels"]["severity"] in ("warning", "critical")
        said = rule["annotations"]
        assert said["summary"]
        assert said["description"]
        assert said["runbook_url"] == f"docs/operations/runbooks.md#{rule['alert'].lower()}"


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.name)
def test_every_panel_says_what_it_shows_in_which_unit_from_the_source_that_is_chosen(path: Path) -> None:
    board = json.loads(path.read_text())
    assert {"datasource", "namespace"} <= {variable["name"] for variable in board["templating"]["list"]}
    for panel in board["panels"]:
        if panel["type"] != "row":
            assert panel["description"]
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
