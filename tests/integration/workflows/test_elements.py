"""Single nodes and edges of drafts through the contract."""

from __future__ import annotations

import asyncio

import orjson
import pytest

from services.kit.errors import AlreadyExistsError, IdempotencyKeyReusedError, InvalidArgumentError, NotFoundError
from tests.integration.workflows.client import Client, edge, node, sound


async def test_a_draft_is_built_node_by_node(client: Client) -> None:
    workflow = await client.workflow()
    first = await client.CreateNode(workflow, revision=1, node=node("", name="Find it", id="forged"))
    second = await client.CreateNode(workflow, revision=2, node=node("b"))
    joined = await client.CreateEdge(workflow, revision=3, edge=edge("find_it", "b"))
    assert (first.node.key, first.revision, second.revision, joined.revision) == ("find_it", 2, 3, 4)
    assert first.node.id != "forged"
    draft = (await client.GetWorkflow(workflow)).workflow
    assert list(draft.definition.nodes) == [first.node, second.node]
    assert list(draft.definition.edges) == [joined.edge]
    assert (await client.GetNode(workflow, node_id=first.node.id)).node == first.node

    patch = orjson.dumps({"key": "search", "config": {"values": {"b": 2}}})
    changed = await client.UpdateNode(workflow, node_id=first.node.id, revision=4, merge_patch=patch)
    assert orjson.loads(changed.node.config.utf8) == {"values": {"a": 1, "b": 2}}
    listed = await client.ListEdges(workflow)
    assert [(item.source, item.target) for item in listed.edges] == [("search", "b")]
    assert listed.revision == changed.revision == 5

    deleted = await client.DeleteNode(workflow, node_id=second.node.id)
    assert deleted.revision == 6
    assert not (await client.ListEdges(workflow)).edges
    assert [item.key for item in (await client.ListNodes(workflow)).nodes] == ["search"]


async def test_a_patch_that_changes_nothing_raises_no_revision(client: Client) -> None:
    workflow = await client.workflow(sound())
    changed = await client.UpdateNode(workflow, node_id=workflow.definition.nodes[0].id, merge_patch=b'{"key": "a"}')
    assert changed.revision == 1


async def test_taken_keys_doubled_edges_and_missing_things_have_their_reasons(client: Client) -> None:
    workflow = await client.workflow(sound("a", "b"))
    a, _ = workflow.definition.nodes
    cases = {
        "NODE_KEY_TAKEN": [
            client.CreateNode(workflow, node=node("a")),
            client.UpdateNode(workflow, node_id=a.id, merge_patch=b'{"key": "b"}'),
        ],
        "EDGE_EXISTS": [client.CreateEdge(workflow, edge=edge("a", "b"))],
        "NODE_NOT_FOUND": [
            client.CreateEdge(workflow, edge=edge("a", "z")),
            client.GetNode(workflow, node_id="x"),
            client.UpdateNode(workflow, node_id="x", merge_patch=b"{}"),
            client.DeleteNode(workflow, node_id=""),
        ],
        "EDGE_NOT_FOUND": [client.DeleteEdge(workflow, edge_id=a.id)],
        "INVALID_ARGUMENT": [
            client.CreateNode(workflow, node=node("Not a key")),
            client.UpdateNode(workflow, node_id=a.id, merge_patch=b'{"id": "x"}'),
            client.UpdateNode(workflow, node_id=a.id, merge_patch=b"{"),
        ],
    }
    for reason, calls in cases.items():
        for call in calls:
            with pytest.raises((AlreadyExistsError, NotFoundError, InvalidArgumentError)) as caught:
                await call
            assert caught.value.reason == reason
    assert (await client.GetWorkflow(workflow)).workflow == workflow


async def test_a_repeated_create_makes_one_node_and_one_edge(client: Client) -> None:
    workflow = await client.workflow(sound("a", "b"))
    calls = [client.CreateNode(workflow, revision=1, node=node("c"), request_id="r") for _ in range(4)]
    nodes = await asyncio.gather(*calls)
    assert all(answer == nodes[0] for answer in nodes)
    edges = [await client.CreateEdge(workflow, revision=2, edge=edge("b", "c"), request_id="r") for _ in range(2)]
    assert edges[0] == edges[1]
    assert (edges[0].revision, len((await client.ListNodes(workflow)).nodes)) == (3, 3)
    with pytest.raises(IdempotencyKeyReusedError):
        await client.CreateNode(workflow, node=node("d"), request_id="r")
    other = await client.workflow()
    again = await client.CreateNode(other, node=node("c"), request_id="r")
    assert again.node.id != nodes[0].node.id


async def test_a_refused_create_may_be_mended_under_the_same_key(client: Client) -> None:
    workflow = await client.workflow(sound("a", "b"))
    with pytest.raises(AlreadyExistsError):
        await client.CreateNode(workflow, node=node("a"), request_id="r")
    assert (await client.CreateNode(workflow, node=node("c"), request_id="r")).node.key == "c"


async def test_concurrent_changes_of_different_nodes_all_happen(client: Client) -> None:
    workflow = await client.workflow()
    await asyncio.gather(*(client.CreateNode(workflow, node=node(f"n{index}")) for index in range(12)))
    after = (await client.GetWorkflow(workflow)).workflow
    assert {item.key for item in after.definition.nodes} == {f"n{index}" for index in range(12)}
    assert after.revision == 13


async def test_nodes_are_listed_in_their_order_in_pages(client: Client) -> None:
    keys = [f"n{index}" for index in (3, 1, 4, 0, 5)]
    workflow = await client.workflow(sound(*keys))
    listed, token = [], ""
    while True:
        page = await client.ListNodes(workflow, page_size=2, page_token=token)
        listed += [item.key for item in page.nodes]
        if not (token := page.next_page_token):
            break
    assert listed == keys
