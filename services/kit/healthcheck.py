"""`headrace-healthcheck`: asks the service in the same container whether it is healthy; status 0 if it is.

HEADRACE_SERVICE names the service, HEADRACE_<SERVICE>_LISTEN its port. The gateway is asked for `/readyz`, others by
the gRPC health protocol.
"""

import os
import sys
from http.client import HTTPConnection, HTTPException

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_TIMEOUT_SECONDS = 4.0


def main() -> None:
    """Command line."""
    service = os.environ["HEADRACE_SERVICE"]
    port = int(os.environ[f"HEADRACE_{service.upper()}_LISTEN"].rpartition(":")[2])
    try:
        answer = _ask_http(port) if service == "gateway" else _ask_grpc(port)
    except (OSError, HTTPException) as error:
        sys.exit(f"{service} does not answer: {error!r}")
    except grpc.RpcError as error:
        sys.exit(f"{service} does not answer: {error.code().name}")
    if answer:
        sys.exit(f"{service} is not ready: {answer}")


def _ask_http(port: int) -> str:
    connection = HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_SECONDS)
    connection.request("GET", "/readyz")
    response = connection.getresponse()
    return "" if response.status == 200 else response.read().decode(errors="replace")


def _ask_grpc(port: int) -> str:
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        status = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_SECONDS)
    if status.status == health_pb2.HealthCheckResponse.SERVING:
        return ""
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(status.status))


if __name__ == "__main__":
    main()
