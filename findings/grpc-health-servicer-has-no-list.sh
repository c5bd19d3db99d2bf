#!/usr/bin/env bash
# grpcio-health-checking: its stub and its .proto know the method List, its own servicer does not implement it.
#
# Expected: grpc.health.v1.Health/List (part of the health protocol that the package ships) lists the services that were set
# on the package's HealthServicer, as Check does one by one.
# Seen: both servicers, health.HealthServicer and health.aio.HealthServicer, inherit the generated method: the caller gets UNIMPLEMENTED.
# The asyncio server moreover tells the caller the name of a Python exception, and prints a traceback to standard error for
# each call, so that a client that lists instead of checking takes a healthy server for one that fails.
#
# Versions: grpcio 1.85.1, grpcio-health-checking 1.85.1, Python 3.11. Date: 2026-11-28.
# Output seen:
#     Check: SERVING
#     List, asyncio: UNIMPLEMENTED: Unexpected <class 'NotImplementedError'>: Method not implemented!
#     List, threads: UNIMPLEMENTED: Method not implemented!
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet --disable-pip-version-check grpcio==1.85.1 grpcio-health-checking==1.85.1; } || exit 2
cat > "$folder/list.py" <<'PYTHON'
import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING


def outcome(error):
    return f"{error.code().name}: {error.details()}"


async def with_asyncio():
    server, servicer = grpc.aio.server(), health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await servicer.set("shop", SERVING)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        checked = await stub.Check(health_pb2.HealthCheckRequest(service="shop"), timeout=10)
        print("Check:", health_pb2.HealthCheckResponse.ServingStatus.Name(checked.status))
        try:
            await stub.List(health_pb2.HealthListRequest(), timeout=10)
            result = "OK"
        except grpc.aio.AioRpcError as error:
            result = outcome(error)
    await server.stop(0)
    print("List, asyncio:", result)
    return result


def with_threads():
    server, servicer = grpc.server(ThreadPoolExecutor(1)), health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    servicer.set("shop", SERVING)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            health_pb2_grpc.HealthStub(channel).List(health_pb2.HealthListRequest(), timeout=10)
            result = "OK"
        except grpc.RpcError as error:
            result = outcome(error)
    server.stop(0)
    print("List, threads:", result)
    return result


results = asyncio.run(with_asyncio()), with_threads()
sys.exit(0 if all(result.startswith("UNIMPLEMENTED") for result in results) else 1)
PYTHON
"$folder/venv/bin/python" "$folder/list.py" 2>/dev/null
