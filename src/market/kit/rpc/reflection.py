"""gRPC server reflection in both versions: v1, and its predecessor v1alpha, which many clients still use.

The library grpcio-reflection supports only v1alpha. The messages of both versions are the same on the wire, so one
servicer serves both.

Source: the gRPC Server Reflection Protocol (grpc/grpc, doc/server-reflection.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection, reflection_pb2

_V1ALPHA = "grpc.reflection.v1alpha"
_V1 = "grpc.reflection.v1"
_SERVICE, _METHOD = "ServerReflection", "ServerReflectionInfo"
_pb2: Any = reflection_pb2


def enable(server: grpc.aio.Server, service_names: Iterable[str]) -> None:
    """Let clients list the services, including both reflection services, and fetch their descriptors."""
    _describe_v1(descriptor_pool.Default())
    names = (*service_names, f"{_V1ALPHA}.{_SERVICE}", f"{_V1}.{_SERVICE}")
    servicer = reflection.aio.ReflectionServicer(names)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=_pb2.ServerReflectionRequest.FromString,
        response_serializer=_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        tuple(
            grpc.method_handlers_generic_handler(f"{package}.{_SERVICE}", {_METHOD: handler})
            for package in (_V1ALPHA, _V1)
        )
    )


def _describe_v1(pool: Any) -> None:
    """Add the descriptor of v1 to the pool, unless the pool already contains it.

    It is a copy of v1alpha's descriptor with another package name.
    """
    try:
        pool.FindFileContainingSymbol(f"{_V1}.{_SERVICE}")
    except KeyError:
        file = FileDescriptorProto()
        _pb2.DESCRIPTOR.CopyToProto(file)
        file.name, file.package = "grpc/reflection/v1/reflection.proto", _V1
        file.ClearField("options")
        for message in file.message_type:
            for field in message.field:
                if field.type_name:
                    field.type_name = field.type_name.replace(_V1ALPHA, _V1)
        for method in file.service[0].method:
            method.input_type = method.input_type.replace(_V1ALPHA, _V1)
            method.output_type = method.output_type.replace(_V1ALPHA, _V1)
        pool.AddSerializedFile(file.SerializeToString())
