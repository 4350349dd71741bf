"""Requests made up from the OpenAPI file, right and wrong, against the whole stack.

Whatever a client sends: no server error, no status, media type or shape that the file does not declare.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import CheckFunction
from schemathesis.checks import not_a_server_error as no_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.contract.conftest import Inhabitant
from tests.support.stack import LocalStack

FILE = Path(__file__).resolve().parent.parent.parent / "docs" / "api" / "openapi.json"
CHECKS: list[CheckFunction] = [
    no_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
# Hashing a password takes a third of a second, and a small model writes for a second: fewer of these.
SLOW = "^(/api/v1/auth/(register|login)|/v1/(chat/completions|embeddings))$"
TIMEOUT = 90


def document() -> schemathesis.BaseSchema:
    config = schemathesis.Config()
    # Every border of every parameter: 5,000 requests and more, for when the file has changed much.
    config.projects.default.phases.coverage.enabled = os.environ.get("HEADRACE_TEST_FUZZ") == "deep"
    return schemathesis.openapi.from_path(FILE, config=config)


DOCUMENT = document()
QUICK_OPERATIONS = DOCUMENT.exclude(path_regex=SLOW)
SLOW_OPERATIONS = DOCUMENT.include(path_regex=SLOW)

sent: Counter[str] = Counter()
statuses: Counter[int] = Counter()


@pytest.fixture(scope="module")
def session() -> requests.Session:
    session = requests.Session()
    session.trust_env = False
    return session


def quickly(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        database=None,
    )


def send(case: schemathesis.Case, stack: LocalStack, session: requests.Session, headers: dict[str, str]) -> int:
    kind = "with" if headers else "without"
    for name in ("Authorization", "X-API-Key"):
        case.headers.pop(name, None)
    response = case.call(base_url=stack.gateway_url, session=session, headers=headers, timeout=TIMEOUT)
    sent[kind] += 1
    statuses[response.status_code] += 1
    case.validate_response(response, checks=CHECKS)
    return response.status_code


@QUICK_OPERATIONS.parametrize()
@quickly(16)
@pytest.mark.timeout(600)
def test_made_up_requests(case, stack: LocalStack, inhabitant: Inhabitant, session: requests.Session):
    """Each as a stranger, as a user, and as a user who means what exists: making up takes longer than answering."""
    refused = send(case, stack, session, {})
    assert not case.operation.definition.raw["security"] or refused in {401, 405, 431}
    send(case, stack, session, inhabitant.headers)
    known = {name: inhabitant.ids.get(name, value) for name, value in case.path_parameters.items()}
    # Deleting what exists would leave nothing to ask for.
    if known != case.path_parameters and case.method != "DELETE":
        case.path_parameters = known
        send(case, stack, session, inhabitant.headers)


@SLOW_OPERATIONS.parametrize()
@quickly(4)
@pytest.mark.timeout(600)
def test_made_up_requests_that_take_longer(case, stack, inhabitant, session):
    if isinstance(case.body, dict) and "messages" in case.body:
        case.body = {**case.body, "max_tokens": 1}
    send(case, stack, session, inhabitant.headers)


def test_there_were_enough_requests():
    print(dict(sent), dict(statuses))
    assert sum(sent.values()) >= 2000
    assert statuses[401] < sum(statuses.values()) / 2
    assert sum(count for status, count in statuses.items() if status < 300) >= 200
