"""Connections to inference servers."""

from collections.abc import Mapping

import aiohttp

from services.llm.domain.errors import ModelUnavailableError

CONNECT_SECONDS = 3.0


def open_session(
    headers: Mapping[str, str], *, silence: float, connect: float = CONNECT_SECONDS
) -> aiohttp.ClientSession:
    """Connections to inference servers; times in seconds. What they send compressed is not unpacked: nobody asked."""
    return aiohttp.ClientSession(
        headers=headers,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect, sock_read=silence),
        # `domain.limits` bounds the calls; the pool must not queue them a second time.
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
    )


def connection_failed(model: str, error: aiohttp.ClientError) -> ModelUnavailableError:
    """What a failure below HTTP means. Its own text may hold addresses, so only its kind is told."""
    return ModelUnavailableError(model, f"the connection to its server failed ({type(error).__name__}).")
