"""Single-use tokens that answer a wait without a login.

A token names the wait - run, place, epoch - and proves by 256 bits of HMAC that an executor made it, so nothing secret
is stored and a guess is refused without asking the database. The epoch ends with the wait, and the token with it.
"""

import base64
import binascii
import hashlib
import hmac
from dataclasses import dataclass
from uuid import UUID

from services.executor.domain.model import NodeRef

_MAX_LENGTH = 8192
_ID_BYTES, _EPOCH_BYTES, _MAC_BYTES = 16, 8, 32


@dataclass(frozen=True, slots=True)
class Wait:
    """One wait of one node execution."""

    ref: NodeRef
    epoch: int


class ResumeTokens:
    """Makes tokens under a key that is derived from the services' common one, and reads those of `accepted` too."""

    def __init__(self, internal_key: bytes, *accepted: bytes) -> None:
        self._keys = [hmac.digest(key, b"headrace resume tokens", hashlib.sha256) for key in (internal_key, *accepted)]

    def make(self, wait: Wait) -> str:
        """The token of a wait."""
        ref = wait.ref
        body = ref.run_id.bytes + wait.epoch.to_bytes(_EPOCH_BYTES, "big")
        body += f"{ref.item_path}/{ref.node_key}".encode()
        return _encoded(_mac(self._keys[0], body) + body)

    def read(self, token: str) -> Wait | None:
        """The wait that a token was made for; None for what nobody made."""
        if len(token) > _MAX_LENGTH or not token.isascii():
            return None
        try:
            data = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        except binascii.Error:
            return None
        mac, body = data[:_MAC_BYTES], data[_MAC_BYTES:]
        # The second: a token has one spelling.
        is_ours = any(hmac.compare_digest(_mac(key, body), mac) for key in self._keys)
        if not is_ours or _encoded(data) != token:
            return None
        place = body[_ID_BYTES + _EPOCH_BYTES :].decode()
        path, _, key = place.rpartition("/")
        epoch = int.from_bytes(body[_ID_BYTES : _ID_BYTES + _EPOCH_BYTES], "big")
        return Wait(NodeRef(UUID(bytes=body[:_ID_BYTES]), key, path), epoch)


def _mac(key: bytes, body: bytes) -> bytes:
    return hmac.digest(key, body, hashlib.sha256)


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
