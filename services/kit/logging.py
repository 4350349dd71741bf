"""Logs: structlog configured once, the standard library's loggers folded in.

A log line is a constant event name with fields; no payloads, prompts or secrets. A worker's attempt binds `run_id`,
`node_key` and `attempt` with `structlog.contextvars.bind_contextvars`; `request_id` and `trace_id` come by themselves.
"""

import logging
import re
import sys
import time
from contextvars import ContextVar

import structlog
from opentelemetry import trace
from structlog.typing import EventDict, Processor, WrappedLogger

from services.kit.settings import CommonSettings

CURRENT_REQUEST: ContextVar[str] = ContextVar("headrace_request_id", default="")
"""The id of the REST request that is being answered, by whichever service; empty when there is none."""
_SELDOM_SECONDS = 60.0
# C0 and C1, DEL, and what breaks lines or turns the direction of writing.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def configure_logging(service: str, settings: CommonSettings | None = None) -> None:
    """Send all logs of this process to standard output, each with the service's name. Call once, first."""
    settings = settings or CommonSettings()
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_ids,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    level = getattr(logging, settings.log_level.upper())
    rendered: list[Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if settings.log_format == "json"
        # Its default prints every local variable, secrets and payloads among them, and takes seconds for it.
        else [
            _escape_controls,
            structlog.dev.ConsoleRenderer(
                colors=sys.stdout.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        ]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendered],
        )
    )
    handler.addFilter(_Seldom("opentelemetry"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for noisy in ("httpx", "nats", "uvicorn.access", "alembic"):
        logging.getLogger(noisy).setLevel(max(level, logging.WARNING))
    structlog.contextvars.bind_contextvars(service=service)


def trace_id() -> str:
    """The id of the present trace, as logs and `traceparent` have it; empty when there is none."""
    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else ""


def _add_ids(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    if request_id := CURRENT_REQUEST.get():
        event["request_id"] = request_id
    if present := trace_id():
        event["trace_id"] = present
    return event


def _escape_controls(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """What strangers have written cannot begin a line of its own or command the terminal; JSON escapes by itself."""
    return {name: _escaped(value) if isinstance(value, str) else value for name, value in event.items()}


def _escaped(text: str) -> str:
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class _Seldom(logging.Filter):
    """Lets through one line a minute of a library: an exporter whose receiver is gone says so at every batch."""

    def __init__(self, library: str) -> None:
        super().__init__()
        self._library = library
        self._next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        """See Filter."""
        if not record.name.startswith(self._library):
            return True
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + _SELDOM_SECONDS
        return True
