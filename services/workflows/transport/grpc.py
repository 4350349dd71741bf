"""WorkflowService over gRPC: each method converts, calls one use case, and converts back."""

from typing import Any
from uuid import UUID

from headrace.workflows.v1 import definition_pb2
from headrace.workflows.v1 import workflow_service_pb2 as pb
from headrace.workflows.v1.workflow_service_pb2_grpc import WorkflowServiceServicer

from services.kit import strict_json
from services.kit.ids import parse_id
from services.kit.paging import encode_page_token, page_size
from services.workflows.domain.checks import off_loop
from services.workflows.domain.definition import MAX_BYTES, Definition
from services.workflows.domain.elements import Elements
from services.workflows.domain.model import Selector
from services.workflows.domain.versions import Versions
from services.workflows.domain.workflows import Workflows
from services.workflows.transport import convert, pages

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["WorkflowService"].full_name


class WorkflowServicer(WorkflowServiceServicer):
    """Serves the contract; `workflow_service.proto` says what each method does."""

    def __init__(self, workflows: Workflows, elements: Elements, versions: Versions) -> None:
        self._workflows = workflows
        self._elements = elements
        self._versions = versions

    async def CreateWorkflow(self, request: pb.CreateWorkflowRequest, context: Any) -> pb.CreateWorkflowResponse:
        checked = await self._workflows.create(
            _project(request),
            name=request.name,
            description=request.description,
            definition=await _definition(request.definition),
            request_id=request.request_id,
        )
        workflow = convert.workflow_to_proto(checked.workflow, checked.definition)
        return pb.CreateWorkflowResponse(workflow=workflow, issues=convert.issues_to_proto(checked.issues))

    async def GetWorkflow(self, request: pb.GetWorkflowRequest, context: Any) -> pb.GetWorkflowResponse:
        if request.definition_as_json:
            draft = await self._workflows.get_text(*_place(request))
            message = convert.workflow_to_proto(draft.workflow)
            message.definition_json.utf8 = draft.text.encode()
        else:
            message = convert.workflow_to_proto(*await self._workflows.get(*_place(request)))
        return pb.GetWorkflowResponse(workflow=message)

    async def ListWorkflows(self, request: pb.ListWorkflowsRequest, context: Any) -> pb.ListWorkflowsResponse:
        size = page_size(request.page_size)
        after = pages.list_place(request.page_token)
        found = await self._workflows.list_page(_project(request), name=request.name, after=after, limit=size + 1)
        token = pages.list_token(found[size - 1]) if len(found) > size else ""
        listed = [convert.workflow_to_proto(workflow) for workflow in found[:size]]
        return pb.ListWorkflowsResponse(workflows=listed, next_page_token=token)

    async def UpdateWorkflow(self, request: pb.UpdateWorkflowRequest, context: Any) -> pb.UpdateWorkflowResponse:
        checked = await self._workflows.update(
            *_place(request),
            revision=request.revision,
            name=request.name if request.HasField("name") else None,
            description=request.description if request.HasField("description") else None,
            definition=await _definition(request.definition) if request.HasField("definition") else None,
        )
        workflow = convert.workflow_to_proto(checked.workflow, checked.definition)
        return pb.UpdateWorkflowResponse(workflow=workflow, issues=convert.issues_to_proto(checked.issues))

    async def DeleteWorkflow(self, request: pb.DeleteWorkflowRequest, context: Any) -> pb.DeleteWorkflowResponse:
        await self._workflows.delete(*_place(request), revision=request.revision)
        return pb.DeleteWorkflowResponse()

    async def PutDefinition(self, request: pb.PutDefinitionRequest, context: Any) -> pb.PutDefinitionResponse:
        definition = await _definition(request.definition)
        checked = await self._workflows.update(*_place(request), revision=request.revision, definition=definition)
        workflow = convert.workflow_to_proto(checked.workflow, checked.definition)
        return pb.PutDefinitionResponse(workflow=workflow, issues=convert.issues_to_proto(checked.issues))

    async def ValidateWorkflow(self, request: pb.ValidateWorkflowRequest, context: Any) -> pb.ValidateWorkflowResponse:
        definition = await _definition(request.definition) if request.HasField("definition") else None
        issues = await self._workflows.validate(*_place(request), definition)
        return pb.ValidateWorkflowResponse(issues=convert.issues_to_proto(issues))

    async def CreateNode(self, request: pb.CreateNodeRequest, context: Any) -> pb.CreateNodeResponse:
        node, revision = await self._elements.create_node(
            *_place(request),
            revision=request.revision,
            node=convert.node_from_proto(request.node),
            request_id=request.request_id,
        )
        return pb.CreateNodeResponse(node=convert.node_to_proto(node), revision=revision)

    async def ListNodes(self, request: pb.ListNodesRequest, context: Any) -> pb.ListNodesResponse:
        size, start = page_size(request.page_size), pages.offset(request.page_token)
        definition, revision = await self._elements.read(*_place(request))
        nodes = [convert.node_to_proto(node) for node in definition.nodes[start : start + size]]
        token = pages.offset_token(start + size, len(definition.nodes))
        return pb.ListNodesResponse(nodes=nodes, next_page_token=token, revision=revision)

    async def GetNode(self, request: pb.GetNodeRequest, context: Any) -> pb.GetNodeResponse:
        node, revision = await self._elements.get_node(*_place(request), request.node_id)
        return pb.GetNodeResponse(node=convert.node_to_proto(node), revision=revision)

    async def UpdateNode(self, request: pb.UpdateNodeRequest, context: Any) -> pb.UpdateNodeResponse:
        patch = strict_json.loads(request.merge_patch, max_bytes=MAX_BYTES)
        node, revision = await self._elements.update_node(
            *_place(request), request.node_id, revision=request.revision, patch=patch
        )
        return pb.UpdateNodeResponse(node=convert.node_to_proto(node), revision=revision)

    async def DeleteNode(self, request: pb.DeleteNodeRequest, context: Any) -> pb.DeleteNodeResponse:
        revision = await self._elements.delete_node(*_place(request), request.node_id, revision=request.revision)
        return pb.DeleteNodeResponse(revision=revision)

    async def CreateEdge(self, request: pb.CreateEdgeRequest, context: Any) -> pb.CreateEdgeResponse:
        edge, revision = await self._elements.create_edge(
            *_place(request),
            revision=request.revision,
            edge=convert.edge_from_proto(request.edge),
            request_id=request.request_id,
        )
        return pb.CreateEdgeResponse(edge=convert.edge_to_proto(edge), revision=revision)

    async def ListEdges(self, request: pb.ListEdgesRequest, context: Any) -> pb.ListEdgesResponse:
        size, start = page_size(request.page_size), pages.offset(request.page_token)
        definition, revision = await self._elements.read(*_place(request))
        edges = [convert.edge_to_proto(edge) for edge in definition.edges[start : start + size]]
        token = pages.offset_token(start + size, len(definition.edges))
        return pb.ListEdgesResponse(edges=edges, next_page_token=token, revision=revision)

    async def DeleteEdge(self, request: pb.DeleteEdgeRequest, context: Any) -> pb.DeleteEdgeResponse:
        revision = await self._elements.delete_edge(*_place(request), request.edge_id, revision=request.revision)
        return pb.DeleteEdgeResponse(revision=revision)

    async def PublishVersion(self, request: pb.PublishVersionRequest, context: Any) -> pb.PublishVersionResponse:
        version = await self._versions.publish(*_place(request), revision=request.revision, note=request.note)
        return pb.PublishVersionResponse(version=convert.full_version_to_proto(version))

    async def ListVersions(self, request: pb.ListVersionsRequest, context: Any) -> pb.ListVersionsResponse:
        size, before = page_size(request.page_size), pages.version_number(request.page_token)
        found = await self._versions.list_page(*_place(request), before=before, limit=size + 1)
        token = encode_page_token([found[size - 1].number]) if len(found) > size else ""
        listed = [convert.version_to_proto(version) for version in found[:size]]
        return pb.ListVersionsResponse(versions=listed, next_page_token=token)

    async def GetVersion(self, request: pb.GetVersionRequest, context: Any) -> pb.GetVersionResponse:
        version = await self._versions.get(*_place(request), request.number)
        return pb.GetVersionResponse(version=convert.full_version_to_proto(version))

    async def ResolveVersion(self, request: pb.ResolveVersionRequest, context: Any) -> pb.ResolveVersionResponse:
        selector = Selector(request.WhichOneof("selector") or Selector.NEWEST)
        lease = 0.0
        if request.lease and selector is not Selector.DRAFT:
            lease = await self._versions.lease(*_place(request))
        version = await self._versions.resolve(
            *_place(request), selector, number=request.number, known=request.known_version_ids
        )
        return pb.ResolveVersionResponse(
            version=convert.full_version_to_proto(version), valid_for=convert.duration_to_proto(lease or None)
        )

    async def FindWorkflow(self, request: pb.FindWorkflowRequest, context: Any) -> pb.FindWorkflowResponse:
        return pb.FindWorkflowResponse(workflow_id=str(await self._versions.find(_project(request), request.name)))

    async def GetVersionById(self, request: pb.GetVersionByIdRequest, context: Any) -> pb.GetVersionByIdResponse:
        version = await self._versions.get_by_id(_project(request), parse_id(request.version_id, resource="version"))
        return pb.GetVersionByIdResponse(version=convert.full_version_to_proto(version))


def _project(request: Any) -> UUID:
    return parse_id(request.project_id, resource="project")


def _place(request: Any) -> tuple[UUID, UUID]:
    return _project(request), parse_id(request.workflow_id, resource="workflow")


async def _definition(message: definition_pb2.Definition) -> Definition:
    return await off_loop(message.ByteSize(), convert.definition_from_proto, message)
