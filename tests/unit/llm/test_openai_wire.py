"""Reading server-sent events, however the network cuts them."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kit.errors import DomainError
from services.llm.backends.openai_wire import ChatStream, error_from_answer
from services.llm.domain.model import FinishReason, Usage


def sse(*payloads: object) -> bytes:
    return b"".join(b"data: " + json.dumps(one).encode() + b"\r\n\r\n" for one in payloads) + b"data: [DONE]\n\n"


def text(content: str) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"content": content}}]}


@given(words=st.lists(st.text(min_size=1), max_size=8), cuts=st.lists(st.integers(0, 400), max_size=12))
def test_the_same_text_is_read_wherever_the_bytes_are_cut(words, cuts):
    data = b": a comment\n\n" + sse(
        *map(text, words),
        {"choices": [{"delta": {}, "finish_reason": "length"}]},
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": len(words)}},
    )
    stream = ChatStream("m")
    read = []
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, end in itertools.pairwise(edges):
        piece = stream.feed(data[start:end])
        if piece:
            read.append(piece.delta)
    assert "".join(read) == "".join(words)
    assert stream.is_done
    ending = stream.ending()
    assert ending is not None
    assert (ending.finish_reason, ending.usage) == (FinishReason.LENGTH, Usage(3, len(words)))


@given(data=st.binary(max_size=200) | st.from_regex(rb"data: [\[\]{}\":a-z0-9, ]{0,60}\n", fullmatch=True))
def test_garbage_is_an_error_of_ours_or_nothing(data):
    stream = ChatStream("m")
    try:
        stream.feed(data)
    except DomainError:
        return
    assert stream.ending() is None


def test_what_arrives_together_is_one_piece():
    piece = ChatStream("m").feed(sse(text("a"), text("b"), text("c")))
    assert piece is not None
    assert (piece.delta, piece.tokens) == ("abc", 3)


def test_an_answer_that_breaks_off_has_no_ending():
    stream = ChatStream("m")
    stream.feed(sse(text("a")))
    assert stream.ending() is None


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (
            400,
            b'{"error":{"code":400,"message":"request (9 tokens) exceeds the available context size (4 tokens)",'
            b'"type":"exceed_context_size_error"}}',
            "PROMPT_TOO_LONG",
        ),
        (400, b'{"object":"error","message":"This model\'s maximum context length is 8 tokens."}', "PROMPT_TOO_LONG"),
        (413, b"", "PROMPT_TOO_LONG"),
        (422, b'{"detail":[{"msg":"bad"}]}', "MODEL_REFUSED_REQUEST"),
        (400, b"<html>", "MODEL_REFUSED_REQUEST"),
        (403, b"", "MODEL_MISCONFIGURED"),
        (308, b"", "MODEL_MISCONFIGURED"),
        (429, b"[]", "MODEL_RATE_LIMITED"),
        (502, b"null", "MODEL_UNAVAILABLE"),
        (599, b"\xff\xfe", "MODEL_UNAVAILABLE"),
    ],
)
def test_statuses_mean(status, body, reason):
    assert error_from_answer("m", status, {}, body).reason == reason


@pytest.mark.parametrize(("header", "seconds"), [("7", 7), ("", 1), ("99999", 3600), ("-1", 1), ("nan", 1), ("x", 1)])
def test_retry_after_is_read_with_caution(header, seconds):
    assert error_from_answer("m", 429, {"retry-after": header}, b"").retry_after == seconds
