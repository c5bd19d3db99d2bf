"""Server processes that a benchmark starts and stops itself, and members of replicated stores."""

from __future__ import annotations

import asyncio
import re
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from market_dev.stack import processes
from market_dev.stack.kafka.apache import ApacheKafka
from market_dev.stack.servers.base import Server, StartError, tail
from market_dev.stack.servers.mongodb import Mongodb

_START_SECONDS = 120.0
# Any: the brokers of one cluster must have the same.
_CLUSTER_ID = "bWFya2V0LXR3by1jb3BpZXM"
MEMBERS = 3


class Servers:
    """Running servers by name, which are stopped in the reverse order."""

    def __init__(self) -> None:
        self._running: dict[str, tuple[Server, subprocess.Popen[bytes]]] = {}

    @property
    def pids(self) -> dict[str, int]:
        return {name: process.pid for name, (_, process) in self._running.items()}

    async def start(self, servers: Mapping[str, Server]) -> None:
        """Start the servers together, and wait until all are ready. Call it from the main thread. Raises StartError."""
        await asyncio.gather(*(asyncio.to_thread(server.prepare) for server in servers.values()))
        for name, server in servers.items():
            server.before_start()
            self._running[name] = server, processes.spawn(server.command(), log=server.log, cwd=server.cwd)
        await asyncio.gather(*map(self._until_ready, servers))

    async def _until_ready(self, name: str) -> None:
        server, process = self._running[name]
        deadline = time.monotonic() + _START_SECONDS
        while not await asyncio.to_thread(server.probe):
            if process.poll() is not None or time.monotonic() > deadline:
                raise StartError(f"{name} did not start; its log ends with:\n{tail(server.log)}")
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """Stop all servers gracefully, and kill those for which that takes too long."""
        while self._running:
            server, process = self._running.popitem()[1]
            if process.poll() is None:
                process.send_signal(server.stop_signal)
                with suppress(subprocess.TimeoutExpired):
                    await asyncio.to_thread(process.wait, server.stop_seconds)
                processes.signal_tree(process.pid, 9)
                process.wait()
            server.after_stop()


class MongodbMember(Mongodb):
    """A member of a replica set, which waits until the set is initiated."""

    def probe(self) -> bool:
        return processes.is_listening(self.port)


def initiate(members: list[MongodbMember]) -> str:
    """Make the servers one replica set, whose primary is the first, and return its URI. Raises TimeoutError."""
    import pymongo

    hosts = [f"{member.host}:{member.port}" for member in members]
    config = {
        "_id": "rs0",
        # The first becomes the primary, and stays it.
        "members": [{"_id": n, "host": host, "priority": 2 if n == 0 else 1} for n, host in enumerate(hosts)],
    }
    client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(members[0].uri)
    try:
        client.admin.command("replSetInitiate", config)
        for _ in range(600):
            states = [m["stateStr"] for m in client.admin.command("replSetGetStatus")["members"]]
            if states == ["PRIMARY"] + ["SECONDARY"] * (len(members) - 1):
                return f"mongodb://{','.join(hosts)}/?replicaSet=rs0"
            time.sleep(0.1)
        raise TimeoutError(f"the replica set has the members {states}")
    finally:
        client.close()


class Broker(ApacheKafka):
    """A broker, and controller, of a cluster. `node`: from 1; `quorum`: the controllers' ports by node."""

    def __init__(
        self, node: int, port: int, quorum: Mapping[int, int], directory: Path, logs: Path, *, cluster_size: int
    ) -> None:
        voters = ",".join(f"{n}@127.0.0.1:{controller}" for n, controller in quorum.items())
        in_sync = cluster_size // 2 + 1
        internal = {
            f"{topic}.{setting}": str(value)
            for topic in ("transaction.state.log", "share.coordinator.state.topic")
            for setting, value in (("replication.factor", cluster_size), ("min.isr", in_sync))
        }
        settings = {
            "node.id": str(node),
            "controller.quorum.voters": voters,
            "default.replication.factor": str(cluster_size),
            "min.insync.replicas": str(in_sync),
            "offsets.topic.replication.factor": str(cluster_size),
            **internal,
        }
        super().__init__(port, quorum[node], directory, logs, settings=settings)
        self.node = node

    def prepare(self) -> None:
        super().prepare()
        path = self.directory / "data" / "meta.properties"
        text = path.read_text()
        for key, value in {"node.id": self.node, "cluster.id": _CLUSTER_ID}.items():
            text = re.sub(rf"(?m)^{key}=.*$", f"{key}={value}", text)
        path.write_text(text)

    def command(self) -> processes.Command:
        # Only a broker that has read the class archive starts fast; several must not write it at the same time.
        command = super().command()
        self._new_archive = None
        kept = [a for a in command.args if not str(a).startswith("-XX:ArchiveClassesAtExit")]
        return replace(command, args=kept)


def wait_for_brokers(bootstrap_servers: str, count: int) -> None:
    """Wait until so many brokers are members of the cluster. Raises TimeoutError."""
    from confluent_kafka.admin import AdminClient

    admin = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0})
    for _ in range(300):
        if len(admin.list_topics(timeout=5).brokers) == count:
            return
        time.sleep(0.1)
    raise TimeoutError(f"Kafka has fewer than {count} brokers")
