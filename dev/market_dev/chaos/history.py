"""What the clients did and what they were told: the only witness beside the stores.

One line of JSON per call, written when its answer came, or when it was clear that none comes.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import IO, Literal

import msgspec

Operation = Literal["place", "cancel", "read", "list", "browse", "restock"]


class Call(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One call of one client. Times are seconds since the run began; `status` 0: no answer came."""

    operation: Operation
    via: Literal["rest", "graphql", "grpc"]
    began: float
    ended: float
    status: int
    key: str = ""
    user: str = ""
    order_id: str = ""
    # product id -> quantity
    items: dict[str, int] = {}
    order_status: str = ""
    detail: str = ""

    @property
    def failed(self) -> bool:
        """Whether the client saw an outage: no answer, or a 5xx."""
        return self.status == 0 or self.status >= 500


class History:
    """Owns the file; keeps the calls in memory as well."""

    def __init__(self, path: Path) -> None:
        self._file: IO[bytes] = path.open("wb")
        self._start = time.monotonic()
        self.calls: list[Call] = []

    def now(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._start

    def add(self, call: Call) -> None:
        self.calls.append(call)
        self._file.write(msgspec.json.encode(call) + b"\n")

    def __enter__(self) -> History:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read(path: Path) -> list[Call]:
    """The calls of a run that is over."""
    decoder = msgspec.json.Decoder(Call)
    return [decoder.decode(line) for line in path.read_bytes().splitlines() if line]
