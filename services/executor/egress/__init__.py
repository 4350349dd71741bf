"""The only code that opens connections to places that users name: public addresses, and what the operator allows."""

from services.executor.egress.client import Egress, HttpRequest
from services.executor.egress.dialing import Dialer
from services.executor.egress.errors import EgressError
from services.executor.egress.http1 import HttpResponse
from services.executor.egress.rules import HostPort, Rules, parse_host_ports

__all__ = [
    "Dialer",
    "Egress",
    "EgressError",
    "HostPort",
    "HttpRequest",
    "HttpResponse",
    "Rules",
    "parse_host_ports",
]
