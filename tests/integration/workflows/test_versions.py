"""Publishing, freezing and resolving versions through the contract."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from headrace.workflows.v1 import definition_pb2 as d

from services.kit.errors import InvalidArgumentError, NotFoundError
from tests.integration.workflows.client import Client, edge, node, sound


async def test_published_versions_are_numbered_and_never_change(client: Client) -> None:
    workflow = await client.workflow(sound("a", "b"), name="first name")
    one = (await client.PublishVersion(workflow, revision=1, note="first")).version
    assert (one.number, one.note, one.workflow_name) == (1, "first", "first name")
    assert one.definition == workflow.definition
    await client.PutDefinition(workflow, revision=1, definition=sound("a", "c"))
    await client.UpdateWorkflow(workflow, name="second name")
    two = (await client.PublishVersion(workflow)).version
    assert (two.number, two.workflow_name) == (2, "second name")
    assert (await client.GetVersion(workflow, number=1)).version == one
    assert (await client.GetWorkflow(workflow)).workflow.latest_version == 2
    listed = (await client.ListVersions(workflow)).versions
    assert [version.number for version in listed] == [2, 1]
    assert not listed[0].HasField("definition")
    page = await client.ListVersions(workflow, page_size=1)
    rest = await client.ListVersions(workflow, page_size=1, page_token=page.next_page_token)
    assert [rest.versions[0].number, rest.next_page_token] == [1, ""]


async def test_publishing_an_unchanged_draft_returns_the_newest_version(client: Client) -> None:
    workflow = await client.workflow(sound())
    answers = await asyncio.gather(*(client.PublishVersion(workflow) for _ in range(4)))
    assert all(answer == answers[0] for answer in answers)
    await client.PutDefinition(workflow, definition=sound("x"))
    await client.PublishVersion(workflow)
    await client.PutDefinition(workflow, definition=sound())
    back = (await client.PublishVersion(workflow)).version
    assert (back.number, back.content_hash) == (3, answers[0].version.content_hash)


async def test_an_invalid_draft_is_not_published_and_all_its_issues_are_told(client: Client) -> None:
    nodes = [node(f"n{index}", "nonsense") for index in range(998)]
    workflow = await client.workflow(d.Definition(nodes=nodes, edges=[edge("n0", "gone"), edge("gone", "n0")]))
    for publish in (client.PublishVersion, partial(client.ResolveVersion, draft=True)):
        with pytest.raises(InvalidArgumentError) as caught:
            await publish(workflow)
        assert caught.value.reason == "INVALID_DEFINITION"
        assert len(caught.value.violations) == 1000
        assert caught.value.violations[3].node_key == "n3"
    assert not (await client.ListVersions(workflow)).versions


async def test_a_warning_does_not_keep_a_draft_from_being_published(client: Client) -> None:
    switch = node("s", "switch", {"cases": [{"port": "p", "when": "true"}]})
    workflow = await client.workflow(d.Definition(nodes=[switch]))
    assert [issue.code for issue in (await client.ValidateWorkflow(workflow)).issues] == ["DEAD_PORT"]
    assert (await client.PublishVersion(workflow)).version.number == 1


async def test_a_run_resolves_a_number_the_newest_or_the_draft(client: Client) -> None:
    workflow = await client.workflow(sound("a"))
    with pytest.raises(NotFoundError) as caught:
        await client.ResolveVersion(workflow, latest=True)
    assert caught.value.reason == "VERSION_NOT_FOUND"
    draft = (await client.ResolveVersion(workflow)).version
    assert (draft.number, draft.definition) == (0, workflow.definition)
    one = (await client.PublishVersion(workflow)).version
    await client.PutDefinition(workflow, definition=sound("b"))
    two = (await client.PublishVersion(workflow)).version
    await client.PutDefinition(workflow, definition=sound("c"))
    assert (await client.ResolveVersion(workflow)).version == two
    assert (await client.ResolveVersion(workflow, latest=True)).version == two
    assert (await client.ResolveVersion(workflow, number=1)).version == one
    newer = (await client.ResolveVersion(workflow, draft=True)).version
    assert (newer.number, newer.definition.nodes[0].key) == (0, "c")
    for number in (0, 3, -1):
        with pytest.raises(NotFoundError):
            await client.ResolveVersion(workflow, number=number)
        with pytest.raises(NotFoundError):
            await client.GetVersion(workflow, number=number)


async def test_the_same_draft_is_frozen_once(client: Client) -> None:
    workflow = await client.workflow(sound("a"))
    answers = await asyncio.gather(*(client.ResolveVersion(workflow, draft=True) for _ in range(6)))
    frozen = answers[0].version
    assert all(answer.version == frozen for answer in answers)
    await client.PutDefinition(workflow, definition=sound("b"))
    other = (await client.ResolveVersion(workflow, draft=True)).version
    assert other.id != frozen.id
    await client.PutDefinition(workflow, definition=sound("a"))
    assert (await client.ResolveVersion(workflow, draft=True)).version.id == frozen.id
    assert not (await client.ListVersions(workflow)).versions


async def test_freezing_leaves_the_revision_alone(client: Client) -> None:
    workflow = await client.workflow(sound("a"))
    await client.ResolveVersion(workflow, draft=True)
    await client.PublishVersion(workflow, revision=1)
    assert (await client.GetWorkflow(workflow)).workflow.revision == 1


async def test_known_definitions_are_left_out(client: Client) -> None:
    workflow = await client.workflow(sound())
    for selector in ({"draft": True}, {"latest": True}, {"number": 1}):
        if "draft" not in selector:
            await client.PublishVersion(workflow)
        version = (await client.ResolveVersion(workflow, **selector)).version
        known = (await client.ResolveVersion(workflow, known_version_ids=["x", version.id], **selector)).version
        assert version.HasField("definition")
        assert not known.HasField("definition")
        assert known.id == version.id


async def test_a_deleted_workflow_cannot_be_run_but_its_versions_stay(client: Client) -> None:
    workflow = await client.workflow(sound())
    version = (await client.PublishVersion(workflow)).version
    await client.DeleteWorkflow(workflow)
    for call in (
        client.GetWorkflow(workflow),
        client.ResolveVersion(workflow),
        client.GetVersion(workflow, number=1),
        client.ListVersions(workflow),
        client.DeleteWorkflow(workflow),
    ):
        with pytest.raises(NotFoundError) as caught:
            await call
        assert caught.value.reason == "WORKFLOW_NOT_FOUND"
    assert (await client.GetVersionById(version_id=version.id)).version == version


async def test_a_large_draft_is_edited_and_run(client: Client) -> None:
    definition = sound(*(f"n{index}" for index in range(3000)))
    workflow = await client.workflow(definition)
    added = await client.CreateNode(workflow, node=node("last"))
    await client.CreateEdge(workflow, edge=edge("n2999", "last"))
    await client.DeleteNode(workflow, node_id=added.node.id)
    version = (await client.ResolveVersion(workflow, draft=True)).version
    assert len(version.definition.nodes) == 3000


async def test_nothing_is_published_or_deleted_while_a_lease_lasts(client: Client) -> None:
    loop = asyncio.get_running_loop()
    workflow = await client.workflow(sound("a"))
    await client.PublishVersion(workflow)
    await client.PutDefinition(workflow, definition=sound("b"))
    for change in (client.PublishVersion, client.DeleteWorkflow):
        asked = loop.time()
        leased = await client.ResolveVersion(workflow, lease=True)
        await change(workflow)
        assert loop.time() >= asked + leased.valid_for.ToTimedelta().total_seconds() > asked


async def test_a_workflow_that_is_being_changed_is_resolved_without_a_lease(client: Client) -> None:
    workflow = await client.workflow(sound("a"))
    one = (await client.PublishVersion(workflow)).version
    await client.PutDefinition(workflow, definition=sound("b"))
    await client.ResolveVersion(workflow, lease=True)
    publishing = asyncio.ensure_future(client.PublishVersion(workflow))
    while (answer := await client.ResolveVersion(workflow, lease=True)).HasField("valid_for"):
        assert answer.version == one
    assert not publishing.done() or answer.version != one
    two = (await publishing).version
    assert (await client.ResolveVersion(workflow, lease=True)).version == two


async def test_drafts_are_not_leased(client: Client) -> None:
    workflow = await client.workflow(sound())
    assert not (await client.ResolveVersion(workflow, lease=True)).HasField("valid_for")
    await client.PublishVersion(workflow)
    assert not (await client.ResolveVersion(workflow, draft=True, lease=True)).HasField("valid_for")
    assert (await client.ResolveVersion(workflow, number=1, lease=True)).HasField("valid_for")
