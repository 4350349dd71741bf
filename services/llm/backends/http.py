"""Connections to inference servers."""

import io
from collections.abc import Mapping
from types import SimpleNamespace

import aiohttp

from services.llm.domain.errors import ModelUnavailableError

CONNECT_SECONDS = 3.0


def open_session(
    headers: Mapping[str, str], *, silence: float, connect: float = CONNECT_SECONDS
) -> aiohttp.ClientSession:
    """Connections to inference servers; times in seconds. What they send compressed is not unpacked: nobody asked."""
    tracing = aiohttp.TraceConfig()
    tracing.on_connection_reuseconn.append(_note_reuse)
    return aiohttp.ClientSession(
        headers=headers,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect, sock_read=silence),
        # `domain.limits` bounds the calls; the pool must not queue them a second time.
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0),
        trace_configs=[tracing],
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
    )


async def post(session: aiohttp.ClientSession, url: str, content: bytes) -> aiohttp.ClientResponse:
    """Send JSON; the caller closes the response. Redirects are answers like others. Raises ClientError, TimeoutError.

    A kept connection may have been closed by the server just as it is used again; then another one is.
    """
    while True:
        reused: list[bool] = []
        try:
            # As a file: aiohttp warns of bytes that are large.
            return await session.post(url, data=io.BytesIO(content), allow_redirects=False, trace_request_ctx=reused)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            if not reused:
                raise


async def _note_reuse(
    session: aiohttp.ClientSession, context: SimpleNamespace, params: aiohttp.TraceConnectionReuseconnParams
) -> None:
    if context.trace_request_ctx is not None:
        context.trace_request_ctx.append(True)


def connection_failed(model: str, error: aiohttp.ClientError) -> ModelUnavailableError:
    """What a failure below HTTP means. Its own text may hold addresses, so only its kind is told."""
    return ModelUnavailableError(model, f"the connection to its server failed ({type(error).__name__}).")
