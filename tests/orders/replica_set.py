"""A replica set of three real members, whose primary can be paused, replaced and resumed without noticing it.

The members reach each other through forwarders, and clients connect to them directly.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pymongo
from market_dev.stack import processes
from market_dev.stack.servers.mongodb import Mongodb
from pymongo.errors import PyMongoError
from pymongo.write_concern import WriteConcern

from tests.support.forwarder import Forwarder
from tests.support.ports import free_port
from tests.support.servers import UriHandle, running
from tests.support.waiting import PATIENCE, until

_NAME = "rs0"
# Members neither call an election nor step down because the others do not respond: only the test decides.
_SETTINGS = {
    "electionTimeoutMillis": 86_400_000,
    "heartbeatTimeoutSecs": 86_400,
    "heartbeatIntervalMillis": 200,
    "catchUpTimeoutMillis": 0,
}


class _Mongod(Mongodb):
    """A server that waits to be initiated, and writes nothing that no client requests."""

    def command(self) -> processes.Command:
        command = super().command()
        options = ["--setParameter", "writePeriodicNoops=false"]
        options += ["--setParameter", "disableLogicalSessionCacheRefresh=true"]
        return replace(command, args=[*command.args, *options])

    def probe(self) -> bool:
        return processes.is_listening(self.port)


class Member:
    """A member. `uri` requests a direct connection to it; `address` is where the other members reach it."""

    def __init__(self, name: str, directory: Path) -> None:
        server = _Mongod(free_port(), directory / name, directory / "logs")
        server.name = name
        server.log = directory / "logs" / f"{name}.log"
        self.server = UriHandle(server)
        self.uri = server.uri
        self.address = Forwarder(server.port)
        self.client: pymongo.AsyncMongoClient[dict[str, Any]] = pymongo.AsyncMongoClient(
            self.uri, uuidRepresentation="standard"
        )

    async def is_primary(self) -> bool:
        """Return whether the member considers itself the primary."""
        return bool((await self.client.admin.command("hello"))["isWritablePrimary"])

    async def elect(self) -> None:
        """Make the member the primary, and wait until a majority acknowledges its writes."""

        async def is_elected() -> bool:
            with suppress(PyMongoError):
                if not await self.is_primary():
                    await self.client.admin.command("replSetStepUp")
                return await self.is_primary()
            return False

        await until(is_elected, what=f"{self.server.server.name} is the primary")
        acknowledged = WriteConcern("majority", j=True)
        with pymongo.timeout(PATIENCE):
            await self.client.test.get_collection("elections", write_concern=acknowledged).insert_one({})


class ReplicaSet:
    """`old` is the primary until `replace_primary`, and `new` afterwards. `uri` is that of the whole set."""

    def __init__(self, old: Member, new: Member, third: Member) -> None:
        self.old, self.new, self.third = old, new, third
        self.members = (old, new, third)

    @property
    def uri(self) -> str:
        hosts = ",".join(f"127.0.0.1:{member.address.port}" for member in self.members)
        return f"mongodb://{hosts}/?replicaSet={_NAME}"

    async def initiate(self) -> None:
        """Create the set, and elect the old primary."""
        hosts = [{"_id": i, "host": f"127.0.0.1:{m.address.port}"} for i, m in enumerate(self.members)]
        config = {"_id": _NAME, "members": hosts, "settings": _SETTINGS}
        await self.old.client.admin.command("replSetInitiate", config)
        await self.old.elect()

    async def replace_primary(self) -> None:
        """Pause the old primary, and elect the new one."""
        self.old.server.pause()
        # What the others send from now on must not be among what the old primary receives when it is resumed. Paused,
        # it opens no connections.
        self.old.address.hold()
        for member in self.members:
            member.address.drop()
        await self.new.elect()

    def resume_cut_off(self) -> None:
        """Resume the old primary without a connection to the others. It still considers itself the primary."""
        self.new.address.hold()
        self.third.address.hold()
        self.old.server.resume()

    async def reconnect(self) -> None:
        """Connect the old primary to the others again, and wait until it has what a majority has acknowledged.

        It has then rolled back what only it had.
        """
        for member in self.members:
            member.address.admit()
        await self.new.client.test.last.insert_one({"_id": "reconnected"})

        async def follows() -> bool:
            # A member that rolls back closes connections.
            with suppress(PyMongoError):
                return await self.old.client.test.last.find_one({"_id": "reconnected"}) is not None
            return False

        await until(follows, what="the old primary follows the new one")


@asynccontextmanager
async def replica_set(directory: Path) -> AsyncIterator[ReplicaSet]:
    """Run a replica set within the block."""
    members = [Member(name, directory) for name in ("mongodb-old", "mongodb-new", "mongodb-third")]
    async with AsyncExitStack() as stack:
        for member in members:
            await stack.enter_async_context(member.address.serving())
            stack.enter_context(running(member.server))
            stack.push_async_callback(member.client.close)
        replicas = ReplicaSet(*members)
        await replicas.initiate()
        yield replicas
