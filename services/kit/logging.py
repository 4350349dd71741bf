"""Logs: structlog configured once, the standard library's loggers folded in.

A log line is a constant event name with fields; no payloads, prompts or secrets. Context variables (request_id, run_id,
node_key, attempt) are bound with `structlog.contextvars.bind_contextvars`.
"""

import logging
import sys

import structlog
from structlog.typing import Processor

from services.kit.settings import CommonSettings


def configure_logging(service: str, settings: CommonSettings | None = None) -> None:
    """Send all logs of this process to standard output, each with the service's name. Call once, first."""
    settings = settings or CommonSettings()
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
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
            structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty(), exception_formatter=structlog.dev.plain_traceback)
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
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for noisy in ("httpx", "nats", "uvicorn.access", "alembic"):
        logging.getLogger(noisy).setLevel(max(level, logging.WARNING))
    structlog.contextvars.bind_contextvars(service=service)
