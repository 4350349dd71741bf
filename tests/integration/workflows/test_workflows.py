"""Workflows and their drafts through the contract."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import asyncpg
import orjson
import pytest
from google.protobuf import duration_pb2
from headrace.common.v1 import issue_pb2, retry_pb2, value_pb2
from headrace.workflows.v1 import definition_pb2 as d

from services.kit.errors import (
    AlreadyExistsError,
    IdempotencyKeyReusedError,
    InvalidArgumentError,
    NotFoundError,
    RevisionMismatchError,
)
from tests.integration.workflows.client import Client, edge, node, sound


async def test_a_workflow_comes_back_as_it_was_made(client: Client) -> None:
    made = node(
        "a",
        "http_request",
        {"url": "https://x", "json": {"big": 9007199254740993, "one": 1.0, "text": "ü {{ input.x }}"}},
        name="Call",
        retry=retry_pb2.RetryPolicy(
            max_attempts=4,
            initial_interval=duration_pb2.Duration(nanos=250_000_000),
            backoff=3,
            max_interval=duration_pb2.Duration(seconds=20),
            jitter=True,
            when="attempt < 3",
        ),
        timeout=duration_pb2.Duration(seconds=1, nanos=500_000_000),
        on_error=d.ON_ERROR_CONTINUE,
        position=d.Position(x=1.5, y=-2),
        join=d.JOIN_ANY,
        delivery=d.DELIVERY_AT_MOST_ONCE,
    )
    definition = d.Definition(
        nodes=[made, node("b")], edges=[edge("a", "b", source_port="error")], timeout=duration_pb2.Duration(seconds=90)
    )
    created = await client.CreateWorkflow(name=" Ask the docs ", description="Why?", definition=definition)
    assert list(created.issues) == []
    assert (created.workflow.name, created.workflow.revision, created.workflow.latest_version) == ("Ask the docs", 1, 0)
    stored = created.workflow.definition
    assert stored.nodes[0].id
    assert stored.edges[0].id
    assert stored.edges[0].target_port == "in"
    expected = d.Node()
    expected.CopyFrom(made)
    expected.id = stored.nodes[0].id
    assert stored.nodes[0] == expected
    assert stored.timeout.seconds == 90
    assert (await client.GetWorkflow(created.workflow)).workflow == created.workflow


async def test_a_draft_with_issues_is_saved_and_they_are_told(client: Client) -> None:
    workflow = await client.workflow()
    bad = d.Definition(nodes=[node("a", "nonsense"), node("b")], edges=[edge("a", "c"), edge("b", "a")])
    put = await client.PutDefinition(workflow, definition=bad)
    assert [(issue.code, issue.path) for issue in put.issues] == [
        ("UNKNOWN_NODE_TYPE", "nodes[0].type"),
        ("UNKNOWN_NODE", "edges[0].target"),
    ]
    assert put.issues[0].severity == issue_pb2.SEVERITY_ERROR
    assert put.workflow.revision == 2
    assert (await client.ValidateWorkflow(workflow)).issues == put.issues
    assert not (await client.ValidateWorkflow(workflow, definition=sound())).issues
    assert (await client.GetWorkflow(workflow)).workflow == put.workflow


@pytest.mark.parametrize(
    ("definition", "path"),
    [
        (d.Definition(nodes=[node("a"), node("a")]), "nodes[1].key"),
        (d.Definition(nodes=[node("Not a key")]), "nodes[0].key"),
        (d.Definition(nodes=[d.Node(key="a", config=value_pb2.Json(utf8=b"{"))]), "nodes[0].config"),
        (d.Definition(nodes=[d.Node(key="a", config=value_pb2.Json(utf8=b"[1]"))]), "nodes[0].config"),
        (d.Definition(nodes=[d.Node(key="a", config=value_pb2.Json(utf8=b'{"x": "\\u0000"}'))]), "nodes[0].config.x"),
        (
            d.Definition(nodes=[d.Node(key="a", config=value_pb2.Json(utf8=b'{"x":' + b"[" * 99 + b"]" * 99 + b"}"))]),
            "",
        ),
        (d.Definition(nodes=[node("a", timeout=duration_pb2.Duration(seconds=10**11))]), "nodes[0].timeout_seconds"),
        (d.Definition(nodes=[node("a", position=d.Position(x=float("nan")))]), "nodes[0].position.x"),
        (d.Definition(nodes=[node("a", on_error=7)]), "nodes[0].on_error"),
    ],
)
async def test_a_draft_that_cannot_be_stored_is_refused(client: Client, definition: d.Definition, path: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await client.workflow(definition)
    assert any(violation.path.startswith(path) for violation in caught.value.violations)


@pytest.mark.parametrize("name", ["", "   ", "x" * 129, "a\nb", "a\u202eb", "a\x00b", "a\u200bb"])
async def test_a_name_is_short_and_visible(client: Client, name: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await client.workflow(name=name)
    assert caught.value.violations[0].path == "name"


async def test_a_name_is_taken_once_per_project_until_its_workflow_is_deleted(client: Client) -> None:
    first, second = await client.workflow(name="same"), await client.workflow(name="other")
    with pytest.raises(AlreadyExistsError) as caught:
        await client.workflow(name="same")
    assert caught.value.reason == "WORKFLOW_NAME_TAKEN"
    with pytest.raises(AlreadyExistsError):
        await client.UpdateWorkflow(second, name="same")
    await client.other_project().workflow(name="same")
    await client.DeleteWorkflow(first)
    await client.UpdateWorkflow(second, name="same")


async def test_a_repeated_create_makes_one_workflow(client: Client) -> None:
    calls = [client.CreateWorkflow(name="w", definition=sound(), request_id="r") for _ in range(5)]
    answers = await asyncio.gather(*calls)
    assert len({answer.workflow.id for answer in answers}) == 1
    assert all(answer == answers[0] for answer in answers)
    with pytest.raises(IdempotencyKeyReusedError):
        await client.CreateWorkflow(name="w2", definition=sound(), request_id="r")
    other = await client.other_project().CreateWorkflow(name="w", definition=sound(), request_id="r")
    assert other.workflow.id != answers[0].workflow.id


async def test_a_change_takes_the_present_revision_or_any(client: Client) -> None:
    workflow = await client.workflow()
    changed = (await client.UpdateWorkflow(workflow, revision=1, name="new name", description="new")).workflow
    assert (changed.revision, changed.name, changed.description) == (2, "new name", "new")
    for stale in (
        client.UpdateWorkflow(workflow, revision=1, name="other"),
        client.PutDefinition(workflow, revision=1, definition=sound()),
        client.DeleteWorkflow(workflow, revision=1),
        client.CreateNode(workflow, revision=1, node=node("a")),
        client.PublishVersion(workflow, revision=1),
    ):
        with pytest.raises(RevisionMismatchError) as caught:
            await stale
        assert caught.value.metadata == {"expected": "1", "actual": "2"}
    assert (await client.UpdateWorkflow(workflow, name="new name")).workflow.revision == 2
    await client.PutDefinition(workflow, revision=2, definition=sound())
    await client.DeleteWorkflow(workflow, revision=3)


async def test_of_two_changes_from_one_revision_one_wins(client: Client) -> None:
    workflow = await client.workflow()
    calls = [client.PutDefinition(workflow, revision=1, definition=sound(key, "z")) for key in "abcd"]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(answer, RevisionMismatchError) for answer in answers) == 3
    assert (await client.GetWorkflow(workflow)).workflow.revision == 2


async def test_ids_of_nodes_survive_a_put(client: Client) -> None:
    workflow = await client.workflow(sound("a", "b"))
    before = workflow.definition
    forged = d.Definition(nodes=[node("b"), node("renamed", id=before.nodes[0].id), node("c", id=str(uuid4()))])
    after = (await client.PutDefinition(workflow, definition=forged)).workflow.definition
    assert [after.nodes[0].id, after.nodes[1].id] == [before.nodes[1].id, before.nodes[0].id]
    assert after.nodes[2].id not in ("", forged.nodes[2].id)


async def test_workflows_are_listed_newest_first_in_pages(client: Client) -> None:
    made = [await client.workflow(name=f"w{index}") for index in range(5)]
    await client.DeleteWorkflow(made[2])
    names, token = [], ""
    while True:
        page = await client.ListWorkflows(page_size=2, page_token=token)
        assert not any(workflow.HasField("definition") for workflow in page.workflows)
        names += [workflow.name for workflow in page.workflows]
        if not (token := page.next_page_token):
            break
    assert names == ["w4", "w3", "w1", "w0"]
    assert [workflow.name for workflow in (await client.ListWorkflows(name="w3")).workflows] == ["w3"]


@pytest.mark.parametrize("token", ["x", "W10", "WzEsMl0", "WyJ4IiwieSJd", "é"])
async def test_a_token_of_another_making_is_refused(client: Client, token: str) -> None:
    workflow = await client.workflow()
    for call in (
        client.ListWorkflows(page_token=token),
        client.ListNodes(workflow, page_token=token),
        client.ListVersions(workflow, page_token=token),
    ):
        with pytest.raises(InvalidArgumentError):
            await call


async def test_what_belongs_to_another_project_does_not_exist(client: Client) -> None:
    workflow = await client.workflow(sound())
    version = (await client.PublishVersion(workflow)).version
    node_id, edge_id = workflow.definition.nodes[0].id, workflow.definition.edges[0].id
    stranger = client.other_project()
    calls = [
        stranger.GetWorkflow(workflow),
        stranger.UpdateWorkflow(workflow, name="x"),
        stranger.DeleteWorkflow(workflow),
        stranger.PutDefinition(workflow, definition=sound()),
        stranger.ValidateWorkflow(workflow, definition=sound()),
        stranger.CreateNode(workflow, node=node("x")),
        stranger.ListNodes(workflow),
        stranger.GetNode(workflow, node_id=node_id),
        stranger.UpdateNode(workflow, node_id=node_id, merge_patch=b"{}"),
        stranger.DeleteNode(workflow, node_id=node_id),
        stranger.CreateEdge(workflow, edge=edge("b", "a")),
        stranger.ListEdges(workflow),
        stranger.DeleteEdge(workflow, edge_id=edge_id),
        stranger.PublishVersion(workflow),
        stranger.ListVersions(workflow),
        stranger.GetVersion(workflow, number=1),
        stranger.ResolveVersion(workflow, draft=True),
        stranger.ResolveVersion(workflow, known_version_ids=[version.id]),
        stranger.GetVersionById(version_id=version.id),
    ]
    for call in calls:
        with pytest.raises(NotFoundError) as caught:
            await call
        assert caught.value.reason in ("WORKFLOW_NOT_FOUND", "VERSION_NOT_FOUND")
    assert (await stranger.ListWorkflows()).workflows == []
    assert (await client.GetWorkflow(workflow)).workflow.revision == 1


@pytest.mark.parametrize("workflow_id", ["", "x", "00000000-0000-0000-0000-000000000000", "{" + "0" * 32 + "}"])
async def test_an_id_that_names_nothing_is_not_found(client: Client, workflow_id: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        await client.GetWorkflow(workflow_id)
    assert caught.value.reason == "WORKFLOW_NOT_FOUND"


async def test_a_draft_from_before_a_field_was_there_has_it_when_it_is_read(client: Client, database_url: str) -> None:
    made = (await client.CreateWorkflow(name="old", definition=sound())).workflow
    whole = (await client.GetWorkflow(made, definition_as_json=True)).workflow.definition_json.utf8
    old = orjson.loads(whole)
    assert old.pop("limits") is None
    assert {node.pop("delivery") for node in old["nodes"]} == {"at_least_once"}
    connection = await asyncpg.connect(database_url)
    statement = "UPDATE workflows.workflows SET draft = $1 WHERE id = $2"
    await connection.execute(statement, orjson.dumps(old).decode(), UUID(made.id))
    await connection.close()

    assert (await client.GetWorkflow(made, definition_as_json=True)).workflow.definition_json.utf8 == whole
    assert (await client.GetWorkflow(made)).workflow.definition == made.definition
