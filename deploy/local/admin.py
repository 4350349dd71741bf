"""The first user of a new stack, registered as anybody would be: through the gateway."""

from __future__ import annotations

import httpx

from deploy.local.errors import StackError


async def register_admin(gateway: str, *, email: str, password: str) -> bool:
    """Register the administrator unless that has happened before; return whether it was now.

    Raises:
        StackError: the gateway refuses for another reason than an address in use.
    """
    async with httpx.AsyncClient(base_url=gateway, timeout=20, trust_env=False) as client:
        reply = await client.post(
            "/api/v1/auth/register", json={"email": email, "password": password, "name": "Administrator"}
        )
    if reply.status_code == httpx.codes.CREATED:
        return True
    if reply.status_code == httpx.codes.CONFLICT:
        return False
    raise StackError(f"The gateway did not register {email}: {reply.status_code} {reply.text[:500]}")
