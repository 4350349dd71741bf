"""The OpenAPI file: current, complete, and readable by a person."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import orjson

from services.gateway.problems import problem, status_of
from services.kit import errors
from services.kit.errors import DomainError
from tools import openapi

ROOT = Path(__file__).resolve().parent.parent.parent
DOCUMENT = orjson.loads(openapi.FILE.read_bytes())
OPERATIONS = [
    (method.upper(), path, operation) for path, item in DOCUMENT["paths"].items() for method, operation in item.items()
]


def test_the_file_is_what_the_routes_say():
    assert openapi.FILE.read_bytes() == openapi.rendered()


def test_every_path_of_the_first_release_is_there():
    paths = {path for _, path, _ in OPERATIONS}
    for prefix in ("auth", "projects", "workflows", "runs", "collections", "tables", "credentials", "node-types"):
        assert any(path.startswith(f"/api/v1/{prefix}") for path in paths)
    assert {"/v1/models", "/v1/chat/completions", "/v1/embeddings", "/healthz", "/readyz"} <= paths
    assert len(OPERATIONS) >= 65


def test_operations_have_names_words_tags_and_no_catch_all():
    names = [operation["operationId"] for _, _, operation in OPERATIONS]
    assert len(set(names)) == len(names)
    for method, path, operation in OPERATIONS:
        assert re.fullmatch("[a-z_]+", operation["operationId"]), (method, path)
        assert operation["description"].endswith("."), (method, path)
        assert set(operation["tags"]) <= {tag["name"] for tag in DOCUMENT["tags"]}, (method, path)
        assert "default" not in operation["responses"], (method, path)


def test_every_body_has_an_example():
    def has_example(schema: dict[str, Any]) -> bool:
        if "$ref" in schema:
            return "example" in DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        return any(has_example(item) for item in schema.get("anyOf", ()))

    for method, path, operation in OPERATIONS:
        for content in operation.get("requestBody", {"content": {}})["content"].values():
            assert has_example(content["schema"]), (method, path)


def test_the_page_of_errors_lists_every_class_with_its_status_and_reason():
    page = (ROOT / "docs" / "api" / "errors.md").read_text()
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, DomainError)}
    for kind in kinds - {DomainError}:
        error = kind("x")
        assert f"| {status_of(error).value} | `{error.reason}` |" in page, kind


def test_a_problem_has_what_the_file_says():
    schema = DOCUMENT["components"]["schemas"]["Problem"]
    violation = errors.Violation("CODE", "Is bad.", "a.b")
    error = errors.InvalidArgumentError("Bad.", violations=(violation,), metadata={"k": "v"})
    body = problem(error, {"path": "/v1/models"})
    assert set(schema["required"]) <= body.keys() <= set(schema["properties"])
