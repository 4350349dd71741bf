"""Accounts, workflows, and the wall between two projects."""

from __future__ import annotations

from tests.e2e.client import PASSWORD, User, node


async def test_a_user_registers_logs_in_and_takes_new_tokens(user: User) -> None:
    me = await user.ask("GET", "/auth/me")
    assert me["email"] == user.email
    assert [project["role"] for project in me["projects"]] == ["owner"]

    await user.ask("POST", "/auth/register", {"email": user.email, "password": PASSWORD}, expect=409)
    await user.ask("POST", "/auth/login", {"username": user.email, "password": "a wrong one"}, expect=401)

    first = user.tokens["refresh_token"]
    second = (await user.ask("POST", "/auth/refresh", {"refresh_token": first}))["refresh_token"]
    assert second != first
    await user.login()
    await user.ask("POST", "/auth/logout", {"refresh_token": user.tokens["refresh_token"]}, expect=204)
    await user.ask("POST", "/auth/refresh", {"refresh_token": user.tokens["refresh_token"]}, expect=401)


async def test_a_workflow_is_made_changed_published_run_and_deleted(user: User) -> None:
    made = await user.ask("POST", "/workflows", {"name": "first"}, expect=201)
    path = f"/workflows/{made['id']}"
    await user.ask("POST", f"{path}/nodes", node("a", "noop", {"value": "{{ input.n }}"}), expect=201)
    await user.ask("POST", f"{path}/nodes", node("b", "output", {"value": "{{ nodes.a.output }}"}), expect=201)
    assert not (await user.ask("POST", f"{path}/validate"))["valid"]
    await user.ask("POST", f"{path}/edges", {"source": "a", "target": "b"}, expect=201)
    assert (await user.ask("POST", f"{path}/validate"))["valid"]
    version = await user.ask("POST", f"{path}/versions", {}, expect=201)
    assert version["number"] == 1

    run = await user.ended((await user.start(made["id"], {"n": 5}))["id"])
    assert (run["output"], run["version"]) == (5, 1)

    present = await user.ask("GET", path)
    await user.ask("PATCH", path, {"name": "second"}, expect=412, If_Match=str(present["revision"] - 1))
    renamed = await user.ask("PATCH", path, {"name": "second"}, If_Match=str(present["revision"]))
    assert renamed["name"] == "second"
    assert [item["name"] for item in (await user.ask("GET", "/workflows"))["items"]] == ["second"]
    await user.ask("DELETE", path, expect=204)
    await user.ask("GET", path, expect=404)


async def test_nothing_of_one_project_exists_for_another(user: User, other_user: User) -> None:
    workflow_id = await user.workflow(node("a", "noop", {"value": "secret"}))
    workflow = await user.ask("GET", f"/workflows/{workflow_id}")
    node_id = workflow["definition"]["nodes"][0]["id"]
    run = await user.ended((await user.start(workflow_id))["id"])
    collection = await user.ask("POST", "/collections", {"name": "c", "dimension": 2}, expect=201)
    records = {"records": [{"id": "r", "vector": [1, 0]}]}
    await user.ask("POST", f"/collections/{collection['id']}/records", records)
    await user.ask("POST", "/tables", {"name": "t", "columns": [{"name": "x", "type": "text"}]}, expect=201)
    secret = {"name": "s", "type": "http_bearer", "data": {"token": "t"}}
    credential = await user.ask("POST", "/credentials", secret, expect=201)
    project = (await user.ask("GET", "/auth/me"))["projects"][0]["id"]

    definition = {"nodes": [], "edges": []}
    calls = [
        ("GET", f"/workflows/{workflow_id}", None),
        ("PATCH", f"/workflows/{workflow_id}", {"name": "mine"}),
        ("DELETE", f"/workflows/{workflow_id}", None),
        ("PUT", f"/workflows/{workflow_id}/definition", definition),
        ("POST", f"/workflows/{workflow_id}/validate", None),
        ("GET", f"/workflows/{workflow_id}/nodes", None),
        ("GET", f"/workflows/{workflow_id}/nodes/{node_id}", None),
        ("GET", f"/workflows/{workflow_id}/edges", None),
        ("GET", f"/workflows/{workflow_id}/versions", None),
        ("GET", f"/workflows/{workflow_id}/versions/1", None),
        ("POST", f"/workflows/{workflow_id}/versions", {}),
        ("POST", f"/workflows/{workflow_id}/runs", {}),
        ("GET", f"/workflows/{workflow_id}/runs", None),
        ("GET", f"/runs/{run['id']}", None),
        ("GET", f"/runs/{run['id']}/nodes", None),
        ("GET", f"/runs/{run['id']}/events", None),
        ("POST", f"/runs/{run['id']}/cancel", None),
        ("GET", f"/collections/{collection['id']}", None),
        ("PATCH", f"/collections/{collection['id']}", {"name": "mine"}),
        ("DELETE", f"/collections/{collection['id']}", None),
        ("POST", f"/collections/{collection['id']}/records", records),
        ("GET", f"/collections/{collection['id']}/records", None),
        ("GET", f"/collections/{collection['id']}/records/r", None),
        ("POST", f"/collections/{collection['id']}/search", {"vector": [1, 0]}),
        ("GET", "/tables/t", None),
        ("GET", "/tables/t/rows", None),
        ("DELETE", "/tables/t", None),
        ("PATCH", f"/credentials/{credential['id']}", {"name": "mine"}),
        ("DELETE", f"/credentials/{credential['id']}", None),
        ("GET", f"/projects/{project}", None),
        ("GET", f"/projects/{project}/members", None),
    ]
    for method, path, body in calls:
        await other_user.ask(method, path, body, expect=404)
        await other_user.ask(method, path, body, expect=404, X_Project_Id=project)
    for path in ("/workflows", "/runs", "/collections", "/tables", "/credentials"):
        assert (await other_user.ask("GET", path))["items"] == []

    # A workflow of the one project cannot reach what belongs to the other either.
    stolen = await other_user.run(node("q", "db_query", {"table": "t"}))
    assert stolen["status"] == "failed"
    stolen = await other_user.run(node("f", "faiss_search", {"collection": collection["id"], "vector": [1, 0]}))
    assert stolen["status"] == "failed"
    assert (await user.ask("GET", f"/workflows/{workflow_id}"))["revision"] == workflow["revision"]


async def test_the_sample_s_way_from_documents_to_a_row(user: User) -> None:
    collection = await user.ask("POST", "/collections", {"name": "docs", "metric": "cosine"}, expect=201)
    texts = ["Water drives the mill through the headrace.", "Bread is baked from flour."]
    records = [{"id": str(number), "text": text} for number, text in enumerate(texts)]
    await user.ask("POST", f"/collections/{collection['id']}/records", {"records": records})
    await user.ask("POST", "/tables", {"name": "found", "columns": [{"name": "text", "type": "text"}]}, expect=201)
    run = await user.run(
        node("search", "faiss_search", {"collection": "docs", "query": "{{ input.question }}", "top_k": 1}),
        node("any", "condition", {"when": "size(nodes.search.output.results) > 0"}),
        node("answer", "llm_call", {"prompt": "{{ nodes.search.output.results[0].text }}", "max_tokens": 8}),
        node("record", "db_write", {"table": "found", "rows": {"text": "{{ nodes.search.output.results[0].text }}"}}),
        node("result", "output", {"value": "{{ nodes.search.output.results[0].text }}"}),
        edges=["search>any", "any:true>answer", "answer>record", "record>result"],
        run_input={"question": "What carries water to the mill?"},
    )
    assert (run["status"], run["output"]) == ("succeeded", texts[0]), run["error"]
    assert [row["text"] for row in (await user.ask("GET", "/tables/found/rows"))["items"]] == [texts[0]]
