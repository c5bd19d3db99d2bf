"""The history of a run: every client call and its response, one JSON line each.

A line is written when the response arrives, or when the client gives up waiting. Together with the final reads
of the stores, this is all that the checker uses.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import IO, Literal

import msgspec

Operation = Literal["place", "cancel", "read", "list", "browse", "restock"]


class Call(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One call by one client. Times are seconds since the run started; `status` is 0 if there was no response.

    user: who sent it; with sign-in the subject of the token
    """

    operation: Operation
    via: Literal["rest", "graphql", "grpc", "storefront"]
    started_at: float
    ended_at: float
    status: int
    key: str = ""
    user: str = ""
    order_id: str = ""
    # product id -> quantity
    items: dict[str, int] = {}
    order_status: str = ""
    # The users whose orders the response shows.
    shown_users: list[str] = []
    detail: str = ""

    @property
    def failed(self) -> bool:
        """Whether the client saw an outage: no response, or a 5xx."""
        return self.status == 0 or self.status >= 500


class History:
    """Owns the history file and keeps all calls in memory as well."""

    def __init__(self, path: Path) -> None:
        self._file: IO[bytes] = path.open("wb")
        self._start = time.monotonic()
        self.calls: list[Call] = []

    def now(self) -> float:
        """Return the seconds since the run started."""
        return time.monotonic() - self._start

    def add(self, call: Call) -> None:
        """Append a call, and write it to the file."""
        self.calls.append(call)
        self._file.write(msgspec.json.encode(call) + b"\n")

    def __enter__(self) -> History:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_history(path: Path) -> list[Call]:
    """Return all calls of a finished run."""
    decoder = msgspec.json.Decoder(Call)
    return [decoder.decode(line) for line in path.read_bytes().splitlines() if line]
