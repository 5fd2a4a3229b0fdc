"""UpsertArtifactBinding, GetArtifactBinding."""

from globalstore.api.context import Handlers
from globalstore.api.encoding import timestamp
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.registry.catalog import bindings
from globalstore.registry.catalog.bindings import Binding
from globalstore.rpc import Call
from globalstore.rules.artifact_ids import Scheme, scheme_of, stored
from globalstore.rules.refusals import InvalidArgument
from globalstore.rules.values import existing

_KINDS = {wire.ARTIFACT_BINDING_KIND_UNSPECIFIED, wire.ARTIFACT_BINDING_KIND_SEAL}


class BindingHandlers(Handlers):
    """The calls by which an assembly is sealed, and its sealed content found."""

    async def UpsertArtifactBinding(
        self, message: wire.UpsertArtifactBindingRequest, request: Call
    ) -> wire.UpsertArtifactBindingResponse:
        """Bind an assembly to what it was sealed to, once and for all."""
        if not message.HasField("binding"):
            raise InvalidArgument("binding is required")
        wanted = message.binding
        from_artifact_id = stored("binding.from_artifact_id", wanted.from_artifact_id)
        to_artifact_id = stored("binding.to_artifact_id", wanted.to_artifact_id)
        if scheme_of(from_artifact_id) is Scheme.MI2:
            raise InvalidArgument(
                "binding.from_artifact_id is a mi2 id, which is sealed by nature; expected that of"
                " an assembly"
            )
        if scheme_of(to_artifact_id) is Scheme.CGID:
            raise InvalidArgument(
                "binding.to_artifact_id is a cgid id, expected that of sealed content"
            )
        if from_artifact_id == to_artifact_id:
            raise InvalidArgument("binding: from_artifact_id and to_artifact_id are the same")
        if wanted.kind not in _KINDS:
            raise InvalidArgument(f"binding.kind is {wanted.kind}, expected SEAL or unspecified")
        binding, created = await self.context.write(
            request, bindings.bind, from_artifact_id, to_artifact_id, self.context.clock.wall_us()
        )
        return wire.UpsertArtifactBindingResponse(
            status=wire.STATUS_OK, binding=_message(binding), created=created
        )

    async def GetArtifactBinding(
        self, message: wire.GetArtifactBindingRequest, request: Call
    ) -> wire.GetArtifactBindingResponse:
        """Tell what an assembly was sealed to."""
        artifact_id = existing("artifact_id", message.artifact_id)
        binding = await self.context.read(bindings.find_binding, artifact_id)
        if binding is None:
            return wire.GetArtifactBindingResponse(status=wire.STATUS_NOT_FOUND)
        return wire.GetArtifactBindingResponse(status=wire.STATUS_OK, binding=_message(binding))


def _message(binding: Binding) -> wire.ArtifactBinding:
    return wire.ArtifactBinding(
        from_artifact_id=binding.from_artifact_id,
        to_artifact_id=binding.to_artifact_id,
        kind=wire.ARTIFACT_BINDING_KIND_SEAL,
        created_at=timestamp(binding.created_at_us),
    )
