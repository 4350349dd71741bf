"""The workflow `ask-the-docs`: search, decide, answer, send, record.

search ─► found ─true──► answer ─► send ─► record ─► result
               └─false─► sorry ─────────► missed ─► nothing
"""

from typing import Any

COLLECTION = "headrace-docs"
TABLE = "answers"
MODEL_ANSWER = {
    "type": "object",
    "properties": {"answer": {"type": "string", "maxLength": 600}},
    "required": ["answer"],
    "additionalProperties": False,
}

# One passage, because the small model that comes along loses its way in two.
_PASSAGES = '{{ nodes.search.output.results.map(r, r.text).join("\\n\\n") }}'
_SOURCES = "{{ nodes.search.output.results.map(r, r.metadata.title).distinct() }}"


def ask_the_docs(receiver_url: str) -> dict[str, Any]:
    """The definition; answers are posted to `receiver_url`."""
    nodes: list[dict[str, Any]] = [
        {
            "key": "search",
            "type": "faiss_search",
            "name": "Find passages",
            "config": {"collection": COLLECTION, "query": "{{ input.question }}", "top_k": 1, "min_score": 0.3},
        },
        {
            "key": "found",
            "type": "condition",
            "name": "Anything relevant?",
            "config": {"when": "size(nodes.search.output.results) > 0"},
        },
        {
            "key": "answer",
            "type": "llm_call",
            "name": "Answer from the passages",
            "config": {
                "system": "You answer questions with one sentence taken from the given text.",
                "prompt": f"Text: {_PASSAGES}\n\nQuestion: {{{{ input.question }}}}",
                "temperature": 0,
                "seed": 1,
                "max_tokens": 200,
                "response_schema": MODEL_ANSWER,
            },
            "timeout_seconds": 120,
            "retry": {"max_attempts": 3},
        },
        {
            "key": "send",
            "type": "http_request",
            "name": "Send the answer",
            "config": {
                "method": "POST",
                "url": receiver_url,
                "json": {
                    "question": "{{ input.question }}",
                    "answer": "{{ nodes.answer.output.json.answer }}",
                    "sources": _SOURCES,
                },
            },
            "retry": {"max_attempts": 5, "initial_interval": 0.2},
        },
        {
            "key": "record",
            "type": "db_write",
            "name": "Record the answer",
            "config": {
                "table": TABLE,
                "rows": {
                    "question": "{{ input.question }}",
                    "answer": "{{ nodes.answer.output.json.answer }}",
                    "sources": _SOURCES,
                    "receipt": "{{ nodes.send.output.json.receipt }}",
                },
            },
        },
        {
            "key": "result",
            "type": "output",
            "name": "Result",
            "config": {"value": {"answer": "{{ nodes.answer.output.json.answer }}", "sources": _SOURCES}},
        },
        {
            "key": "sorry",
            "type": "transform",
            "name": "Say that nothing was found",
            "config": {"values": {"answer": "The documents say nothing about that."}},
        },
        {
            "key": "missed",
            "type": "db_write",
            "name": "Record the open question",
            "config": {
                "table": TABLE,
                "rows": {"question": "{{ input.question }}", "answer": "{{ nodes.sorry.output.answer }}"},
            },
        },
        {
            "key": "nothing",
            "type": "output",
            "name": "Nothing found",
            "config": {"value": {"answer": "{{ nodes.sorry.output.answer }}", "sources": []}},
        },
    ]
    for column, node in enumerate(nodes[:6]):
        node["position"] = {"x": 220 * column, "y": 0}
    for column, node in enumerate(nodes[6:]):
        node["position"] = {"x": 220 * (column + 2), "y": 160}
    edges = [
        {"source": "search", "target": "found"},
        {"source": "found", "target": "answer", "source_port": "true"},
        {"source": "answer", "target": "send"},
        {"source": "send", "target": "record"},
        {"source": "record", "target": "result"},
        {"source": "found", "target": "sorry", "source_port": "false"},
        {"source": "sorry", "target": "missed"},
        {"source": "missed", "target": "nothing"},
    ]
    return {"nodes": nodes, "edges": edges}
