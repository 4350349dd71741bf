"""Fixtures for tests of the local stack."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deploy.local.home import Home


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Home]:
    """A home whose path is longer than a socket's may be (108 bytes)."""
    home = Home(tmp_path / "a-rather-long-name-for-a-folder" / ("home-" * 20))
    yield home
    home.close()
