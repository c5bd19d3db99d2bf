"""Hostile clients as a process of their own: reads a `Spec` as JSON from stdin, prints the outcomes by kind as JSON."""

from __future__ import annotations

import asyncio
import sys

import msgspec
import uvloop

from benchmarks.hostile.clients import Targets, attacking, kinds


class Spec(msgspec.Struct, kw_only=True):
    """See `Targets`, `kinds` and `attacking`."""

    ports: dict[str, int]
    product_ids: list[str]
    long_product_ids: list[str]
    seconds: float
    address: str = "127.0.0.1"
    intensity: float = 1.0
    pause: float = 2.0


async def main(spec: Spec) -> None:
    targets = Targets(spec.ports, spec.product_ids, spec.long_product_ids, spec.address)
    async with attacking(targets, kinds(spec.pause), intensity=spec.intensity) as attack:
        await asyncio.sleep(spec.seconds)
    print(msgspec.json.encode({name: dict(outcomes) for name, outcomes in attack.outcomes.items()}).decode())


if __name__ == "__main__":
    uvloop.run(main(msgspec.json.decode(sys.stdin.buffer.read(), type=Spec)))
