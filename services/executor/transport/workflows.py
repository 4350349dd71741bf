"""The workflows service, as the executor asks it."""

from uuid import UUID

from headrace.workflows.v1 import workflow_service_pb2 as pb
from headrace.workflows.v1.workflow_service_pb2_grpc import WorkflowServiceStub

from services.executor.domain.model import VersionSelector
from services.executor.domain.versions import ResolvedVersion
from services.kit.grpc_client import Rpc, open_channel
from services.kit.identity import TokenSource

_TIMEOUT = 10.0


class GrpcWorkflows:
    """Workflows over gRPC."""

    def __init__(self, target: str, tokens: TokenSource) -> None:
        self._channel = open_channel(target)
        self._stub = WorkflowServiceStub(self._channel)
        self._rpc = Rpc(tokens)

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def find(self, project_id: UUID, name: str) -> UUID:
        """See Workflows."""
        request = pb.FindWorkflowRequest(project_id=str(project_id), name=name)
        return UUID((await self._rpc.call(self._stub.FindWorkflow, request, timeout=_TIMEOUT)).workflow_id)

    async def resolve(
        self, project_id: UUID, workflow_id: UUID, selector: VersionSelector, known: list[UUID], *, lease: bool
    ) -> ResolvedVersion:
        """See Workflows."""
        request = pb.ResolveVersionRequest(
            project_id=str(project_id),
            workflow_id=str(workflow_id),
            known_version_ids=[str(version_id) for version_id in known],
            lease=lease,
        )
        if selector.number is not None:
            request.number = selector.number
        elif selector.latest:
            request.latest = True
        elif selector.draft:
            request.draft = True
        reply = await self._rpc.call(self._stub.ResolveVersion, request, timeout=_TIMEOUT)
        version = reply.version
        has_definition = version.HasField("definition")
        return ResolvedVersion(
            id=UUID(version.id),
            project_id=project_id,
            workflow_id=workflow_id,
            workflow_name=version.workflow_name,
            number=version.number,
            definition=version.definition.SerializeToString() if has_definition else None,
            valid_seconds=reply.valid_for.ToTimedelta().total_seconds(),
        )
