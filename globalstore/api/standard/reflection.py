"""Server reflection, v1 and v1alpha: tools learn the services without proto files."""

from collections.abc import AsyncIterator, Iterable, Sequence
from types import ModuleType
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from purerpc import Cardinality, RPCSignature, Service, StatusCode

from globalstore.gen.grpc.reflection.v1 import reflection_pb2 as v1
from globalstore.gen.grpc.reflection.v1alpha import reflection_pb2 as v1alpha

V1 = "grpc.reflection.v1.ServerReflection"
V1_ALPHA = "grpc.reflection.v1alpha.ServerReflection"


def reflection_services(
    service_names: Iterable[str], pool: descriptor_pool.DescriptorPool | None = None
) -> list[Service]:
    """Return the two reflection services, listing ``service_names`` and themselves.

    Descriptions come from ``pool``, by default the one generated code registers with.
    """
    names = sorted({*service_names, V1, V1_ALPHA})
    source = pool or descriptor_pool.Default()
    return [
        _Reflection(v1, names, source).service(V1),
        _Reflection(v1alpha, names, source).service(V1_ALPHA),
    ]


class _Reflection:
    """One version of the service: the versions differ only in the package of their messages."""

    def __init__(
        self, messages: ModuleType, names: Sequence[str], pool: descriptor_pool.DescriptorPool
    ) -> None:
        self._messages: Any = messages
        self._names = names
        self._pool = pool

    def service(self, name: str) -> Service:
        service = Service(name)
        service.add_method(
            "ServerReflectionInfo",
            self._info,
            RPCSignature(
                Cardinality.STREAM_STREAM,
                self._messages.ServerReflectionRequest,
                self._messages.ServerReflectionResponse,
            ),
        )
        return service

    async def _info(self, input_messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for question in input_messages:
            answer = self._messages.ServerReflectionResponse(
                valid_host=question.host, original_request=question
            )
            try:
                self._answer(question, answer)
            except (KeyError, TypeError) as error:
                answer.error_response.error_code = StatusCode.NOT_FOUND.value
                answer.error_response.error_message = f"not found: {error}"[:500]
            yield answer

    def _answer(self, question: Any, answer: Any) -> None:
        pool = self._pool
        kind = question.WhichOneof("message_request")
        if kind == "list_services":
            for name in self._names:
                answer.list_services_response.service.add(name=name)
        elif kind == "file_by_filename":
            self._describe(answer, pool.FindFileByName(question.file_by_filename))
        elif kind == "file_containing_symbol":
            self._describe(answer, self._file_of(question.file_containing_symbol))
        elif kind == "file_containing_extension":
            wanted = question.file_containing_extension
            extended = pool.FindMessageTypeByName(wanted.containing_type)
            extension: Any = pool.FindExtensionByNumber(extended, wanted.extension_number)
            self._describe(answer, extension.file)
        elif kind == "all_extension_numbers_of_type":
            name = question.all_extension_numbers_of_type
            numbers = pool.FindAllExtensions(pool.FindMessageTypeByName(name))
            answer.all_extension_numbers_response.base_type_name = name
            answer.all_extension_numbers_response.extension_number.extend(
                sorted(each.number for each in numbers)
            )
        else:
            answer.error_response.error_code = StatusCode.INVALID_ARGUMENT.value
            answer.error_response.error_message = "message_request: expected one of its fields"

    def _file_of(self, symbol: str) -> FileDescriptor:
        pool = self._pool
        try:
            return pool.FindFileContainingSymbol(symbol)
        except KeyError:
            # The pool knows types and services; methods and fields are looked for in them.
            parent, _, member = symbol.rpartition(".")
            file = pool.FindFileContainingSymbol(parent)
            service = file.services_by_name.get(parent.rpartition(".")[2])
            if service is not None and service.full_name == parent:
                if member in service.methods_by_name:
                    return file
            elif member in pool.FindMessageTypeByName(parent).fields_by_name:
                return file
            raise

    def _describe(self, answer: Any, file: FileDescriptor) -> None:
        """Add ``file`` and all it imports, each once."""
        seen: dict[str, FileDescriptor] = {}
        pending = [file]
        while pending:
            each = pending.pop()
            if each.name not in seen:
                seen[each.name] = each
                pending.extend(each.dependencies)
        answer.file_descriptor_response.file_descriptor_proto.extend(
            each.serialized_pb for each in seen.values()
        )
