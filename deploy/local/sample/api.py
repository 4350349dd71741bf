"""The few REST calls that the sample makes, as any client would."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson


class Api:
    """Headrace's REST API as one user."""

    def __init__(self, url: str) -> None:
        self._http = httpx.AsyncClient(base_url=f"{url}/api/v1", timeout=httpx.Timeout(120), trust_env=False)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def login(self, email: str, password: str) -> None:
        """Act as this user from now on."""
        response = await self._http.post("/auth/login", data={"username": email, "password": password})
        self._http.headers["Authorization"] = f"Bearer {_body(response)['access_token']}"

    async def get(self, path: str, **params: Any) -> Any:
        """GET a resource."""
        return _body(await self._http.get(path, params=params))

    async def post(self, path: str, body: Any, *, key: str = "") -> Any:
        """POST a body, with an idempotency key if given."""
        return _body(await self._http.post(path, json=body, headers={"Idempotency-Key": key} if key else {}))

    async def put(self, path: str, body: Any) -> Any:
        """PUT a body."""
        return _body(await self._http.put(path, json=body))

    async def find(self, path: str, name: str) -> Any:
        """The item of that name in a list, None when there is none."""
        token: str | None = ""
        while token is not None:
            page = await self.get(path, page_size=200, **({"page_token": token} if token else {}))
            for item in page["items"]:
                if item["name"] == name:
                    return item
            token = page["next_page_token"]
        return None

    async def events(self, run_id: str) -> AsyncIterator[dict[str, Any]]:
        """A run's events, live, until its end."""
        headers = {"Accept": "text/event-stream"}
        async with self._http.stream("GET", f"/runs/{run_id}/events", headers=headers) as response:
            if response.is_error:
                await response.aread()
                _body(response)
            async for line in response.aiter_lines():
                if line.startswith("data:"):
                    yield orjson.loads(line[5:])


class ApiError(Exception):
    """The API refused a call; the text says what and why."""


def _body(response: httpx.Response) -> Any:
    if response.is_error:
        raise ApiError(f"{response.request.method} {response.request.url.path}: {response.status_code} {response.text}")
    return orjson.loads(response.content)
