"""Sets the sample up, runs it, and shows each node as it happens."""

import asyncio
import re
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.markup import escape

from deploy.local.info import StackInfo
from deploy.local.sample.api import Api, ApiError
from deploy.local.sample.definition import COLLECTION, TABLE, ask_the_docs
from deploy.local.sample.receiver import Receiver

WORKFLOW = "ask-the-docs"
QUESTIONS = ("What happens when a worker is killed?", "How do I bake sourdough bread?")
_DOCUMENTS = Path(__file__).parent / "documents"


async def run(stack: StackInfo) -> int:
    """Fill the collection, run the workflow once for each question; 0 when every run came to its expected end."""
    api = Api(stack.gateway_url)
    receiver = Receiver()
    try:
        async with asyncio.timeout(300), receiver.serve(stack.receiver_host, stack.receiver_port) as url:
            await api.login(stack.admin_email, stack.admin_password)
            workflow_id = await _prepare(api, url, stack.console)
            answered = await _ask(api, workflow_id, QUESTIONS[0], stack.console)
            unanswered = await _ask(api, workflow_id, QUESTIONS[1], stack.console)
            if answered["status"] == "succeeded":
                await _show_row(api, answered, stack.console)
        succeeded = answered["status"] == unanswered["status"] == "succeeded"
        return 0 if succeeded and answered["output"]["sources"] and not unanswered["output"]["sources"] else 1
    except (ApiError, TimeoutError) as error:
        stack.console.print(f"[bold red]The sample failed:[/] {escape(str(error) or 'it took longer than 300 s')}")
        return 1
    finally:
        await api.close()


async def _prepare(api: Api, receiver_url: str, console: Console) -> str:
    """Make what is missing and bring it up to date, so that a second start works on what the first left."""
    if await api.find("/collections", COLLECTION) is None:
        await api.post("/collections", {"name": COLLECTION, "metric": "cosine"})
    collection = await api.find("/collections", COLLECTION)
    records = [record for path in sorted(_DOCUMENTS.glob("*.md")) for record in _passages(path)]
    await api.post(f"/collections/{collection['id']}/records", {"records": records})
    if await api.find("/tables", TABLE) is None:
        columns = [
            {"name": "question", "type": "text"},
            {"name": "answer", "type": "text"},
            {"name": "sources", "type": "json", "nullable": True},
            {"name": "receipt", "type": "text", "nullable": True},
        ]
        await api.post("/tables", {"name": TABLE, "columns": columns})
    definition = ask_the_docs(receiver_url)
    workflow = await api.find("/workflows", WORKFLOW)
    if workflow is None:
        workflow = await api.post("/workflows", {"name": WORKFLOW, "definition": definition})
    else:
        await api.put(f"/workflows/{workflow['id']}/definition", definition)
    version = await api.post(f"/workflows/{workflow['id']}/versions", {})
    console.print(
        f"\n[bold]Sample:[/] {len(records)} passages in the collection {COLLECTION!r}, "
        f"workflow {WORKFLOW!r} version {version['number']}."
    )
    return str(workflow["id"])


def _passages(path: Path) -> list[dict[str, Any]]:
    """A document's paragraphs as records, each with the document's title."""
    title, *paragraphs = re.split(r"\n\s*\n", path.read_text().strip())
    return [
        {
            "id": f"{path.stem}-{number}",
            "text": " ".join(paragraph.split()),
            "metadata": {"title": title.lstrip("# "), "document": path.name},
        }
        for number, paragraph in enumerate(paragraphs, start=1)
    ]


async def _ask(api: Api, workflow_id: str, question: str, console: Console) -> dict[str, Any]:
    console.print(f"\n[bold]Question:[/] {question}")
    started = await api.post(f"/workflows/{workflow_id}/runs", {"input": {"question": question}})
    streaming = False
    async for event in api.events(started["id"]):
        if event["type"] == "node.token":
            console.print(escape(event["data"]["text"]), end="", style="dim")
            streaming = True
            continue
        if streaming:
            console.print()
            streaming = False
        console.print(_line(event), soft_wrap=True)
    run: dict[str, Any] = await api.get(f"/runs/{started['id']}")
    if run["status"] == "succeeded":
        console.print(f"[bold]Answer:[/]  {escape(run['output']['answer'])}")
        console.print(f"[bold]Sources:[/] {', '.join(run['output']['sources']) or 'none'}")
    else:
        console.print(f"[bold red]The run {run['status']}:[/] {escape(str(run['error']))}")
    return run


def _line(event: dict[str, Any]) -> str:
    """An event as a line: what happened, to which node, and what is worth knowing."""
    data = event["data"]
    colour = {"succeeded": "green", "failed": "red", "retrying": "yellow", "skipped": "dim"}.get(
        event["type"].partition(".")[2], "cyan"
    )
    more = ""
    if "error" in data:
        more = escape(data["error"]["message"])
    elif data.get("port"):
        more = f"→ {data['port']}"
    return f"  [{colour}]{event['type']:<15}[/] {event.get('node_key') or '':<10} {more}"


async def _show_row(api: Api, run: dict[str, Any], console: Console) -> None:
    """Read the row that the run has written back through the API."""
    nodes = await api.get(f"/runs/{run['id']}/nodes", page_size=200)
    receipt = next(node["output"]["json"]["receipt"] for node in nodes["items"] if node["node_key"] == "send")
    wanted = orjson.dumps({"field": "receipt", "op": "eq", "value": receipt}).decode()
    rows = (await api.get(f"/tables/{TABLE}/rows", filter=wanted))["items"]
    if len(rows) != 1:
        raise ApiError(f"table {TABLE!r} has {len(rows)} rows with the receipt {receipt}, not one")
    console.print(f"[bold]Row written:[/] {escape(str(rows[0]))}\n", soft_wrap=True)
