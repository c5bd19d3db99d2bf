"""From the request of an order to its mail on the mail server's disk, all services and stores on all cores."""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path
from typing import Any

import msgspec
from market_dev.mailcatcher.mailbox import Envelope

from benchmarks.measurements import Measurement, Row, Spread, percentiles
from benchmarks.scenario import Contestants, Measurements, Scenario, rounded, values
from benchmarks.testbed import Testbed, outbox_drained

RATE = 300.0
MAX_P99_MS = 150
TITLE = f"order to mail, at {RATE:g} orders/s"


class MailLog:
    """Reads what the mail server has stored since the last read."""

    def __init__(self, data: Path) -> None:
        """`data`: the data directory of the stack."""
        self._path = data / "mail" / "mails.log"
        self._offset = self._path.stat().st_size if self._path.exists() else 0

    def read_new(self) -> list[Envelope]:
        """Return the envelopes of the mails that are complete."""
        found: list[Envelope] = []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            while line := file.readline():
                if not line.endswith(b"\n"):
                    break
                envelope = msgspec.json.decode(line, type=Envelope)
                if len(file.read(envelope.size + 1)) <= envelope.size:
                    break
                found.append(envelope)
                self._offset = file.tell()
        return found

    async def wait_for(self, prefix: str, count: int, timeout_seconds: float) -> list[float]:
        """Return the seconds from each order's request to its mail; duplicates count once.

        `prefix`: of the recipients, see `workloads.orders`. Raises RuntimeError if mails are missing.
        """
        lags: dict[str, float] = {}
        deadline = time.monotonic() + timeout_seconds
        while len(lags) < count:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{len(lags)} of {count} mails arrived within {timeout_seconds:g} s")
            for envelope in await asyncio.to_thread(self.read_new):
                recipient = envelope.recipients[0]
                if recipient.startswith(prefix + "."):
                    requested_at = int(recipient.split(".")[1]) / 1e9
                    lags.setdefault(recipient, envelope.received_at.timestamp() - requested_at)
            await asyncio.sleep(0.05)
        return list(lags.values())


async def prepare(testbed: Testbed) -> Contestants:
    ids = await testbed.fill()
    testbed.stack.resume("notifications")
    testbed.pin()
    spec: dict[str, Any] = {"port": testbed.port("orders"), "workload": "orders"}
    # Warm up, and consume what other scenarios have left in the topic.
    mails = MailLog(testbed.directory)
    await testbed.load(**spec, params={"ids": ids, "email": "w"}, connections=1, count=20)
    await mails.wait_for("w", 20, 120)
    numbers = itertools.count()

    async def measure() -> Measurement:
        prefix = f"r{next(numbers)}"
        mails = MailLog(testbed.directory)
        result, cpu_ms = await testbed.load_and_cpu(
            **spec,
            params={"ids": ids, "email": prefix},
            connections=64,
            rate=RATE,
            seconds=testbed.seconds if testbed.smoke else max(8.0, testbed.seconds),
            warmup=0,
        )
        lags = await mails.wait_for(prefix, result.succeeded, 60)
        await outbox_drained(testbed.urls["mongodb"])
        latency = percentiles(lags)
        return Measurement(
            value=latency.p99,
            operations=len(lags),
            latency=latency,
            open_loop=result.latency,
            open_loop_rate=RATE,
            cpu_ms=cpu_ms,
            notes={"mails": len(lags)},
        )

    return {"ours": measure}


def judge(measurements: Measurements) -> list[Row]:
    spread = Spread.of(values(measurements["ours"]))
    return [
        Row(
            scenario=TITLE,
            unit="ms, p99",
            ours=rounded(spread.median),
            peer=None,
            limit=None,
            ratio_to_peer=None,
            ratio_to_limit=None,
            goal=f"p99 <= {MAX_P99_MS} ms",
            met=spread.median <= MAX_P99_MS,
            remark=f"the p99 of the rounds was {spread.low:.0f} to {spread.high:.0f} ms",
        )
    ]


SCENARIOS = [
    Scenario(
        name="mail",
        title=TITLE,
        goal=f"p99 <= {MAX_P99_MS} ms",
        prepare=prepare,
        judge=judge,
        unit="ms, p99",
        group="orders",
    )
]
