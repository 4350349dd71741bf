"""Page tokens of this service's lists."""

from datetime import datetime
from uuid import UUID

from services.kit.paging import decode_page_token, encode_page_token, page_token_error
from services.workflows.domain.model import Workflow
from services.workflows.domain.store import ListPlace

_LARGEST = 2**31 - 1


def list_place(token: str) -> ListPlace | None:
    """The place in a token of the list of workflows."""
    place = decode_page_token(token, length=2)
    if place is None:
        return None
    try:
        found = ListPlace(datetime.fromisoformat(place[0]), UUID(place[1]))
    except (TypeError, ValueError, AttributeError) as error:
        raise page_token_error() from error
    if found.created_at.tzinfo is None:
        raise page_token_error()
    return found


def list_token(last: Workflow) -> str:
    """The token for what follows a workflow."""
    return encode_page_token([last.created_at.isoformat(), str(last.id)])


def offset(token: str) -> int:
    """The position in a token of a list of nodes or edges; such a list is counted, as it has the author's order."""
    return _number(token) or 0


def offset_token(position: int, count: int) -> str:
    """The token for what follows a position; empty at the end of `count`."""
    return encode_page_token([position]) if position < count else ""


def version_number(token: str) -> int | None:
    """The number in a token of the list of versions."""
    return _number(token)


def _number(token: str) -> int | None:
    place = decode_page_token(token, length=1)
    if place is None:
        return None
    if type(place[0]) is not int or not 0 <= place[0] <= _LARGEST:
        raise page_token_error()
    return place[0]
