"""What a program that uses a running local stack needs to know of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.console import Console


@dataclass(frozen=True, kw_only=True)
class StackInfo:
    """A stack that is ready."""

    gateway_url: str
    admin_email: str
    admin_password: str = field(repr=False)
    receiver_port: int
    """A free port of `receiver_host` that the stack's workers may reach."""
    receiver_host: str = "127.0.0.1"
    """A name or address of this machine, as the stack's workers know it."""
    console: Console
