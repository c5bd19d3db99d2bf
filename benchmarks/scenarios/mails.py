"""From the order's request to its mail on the mail server's disk, all five services and the stores on all cores."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
from market_dev.mailcatcher.mailbox import Envelope

from benchmarks.figures import Figure, Row, Spread, percentiles
from benchmarks.lab import Lab, settle
from benchmarks.scenario import Contestants, Figures, Scenario, rounded

TITLE = "order to mail, at half the rate at which mails keep up"


class Mails:
    """Reads what the mail server has kept since the last look."""

    def __init__(self, lab: Lab) -> None:
        self._path = lab.directory / "mail" / "mails.log"
        self._at = self._path.stat().st_size if self._path.exists() else 0

    def new(self) -> list[Envelope]:
        found: list[Envelope] = []
        with self._path.open("rb") as file:
            file.seek(self._at)
            while line := file.readline():
                if not line.endswith(b"\n"):
                    break
                envelope = msgspec.json.decode(line, type=Envelope)
                if len(file.read(envelope.size + 1)) <= envelope.size:
                    break
                found.append(envelope)
                self._at = file.tell()
        return found

    async def all(self, prefix: str, count: int, seconds: float) -> list[float]:
        """Seconds from each request to its mail; repeats are folded. Raises RuntimeError when mails are missing."""
        lags: dict[str, float] = {}
        until = time.monotonic() + seconds
        while len(lags) < count:
            if time.monotonic() > until:
                raise RuntimeError(f"{len(lags)} of {count} mails came within {seconds} s")
            for envelope in await asyncio.to_thread(self.new):
                to = envelope.recipients[0]
                if to.startswith(prefix + "."):
                    lags.setdefault(to, envelope.received_at.timestamp() - int(to.split(".")[1]) / 1e9)
            await asyncio.sleep(0.05)
        return list(lags.values())


async def prepare(lab: Lab) -> Contestants:
    ids = await lab.fill()
    lab.stack.resume("notifications")
    lab.pin()
    spec: dict[str, Any] = {"port": lab.port("orders"), "workload": "orders"}
    # Warm, and past what other scenarios have left in the topic.
    mails = Mails(lab)
    await lab.load(**spec, params={"ids": ids, "email": "w"}, connections=1, count=20)
    await mails.all("w", 20, 120)
    # More than mails can keep up with, for a while: how many come out meanwhile is the rate at which they keep up.
    mails = Mails(lab)
    started = time.monotonic()
    result, _ = await lab.measure(
        **spec, params={"ids": ids, "email": "k"}, connections=64, count=100 if lab.smoke else 3000
    )
    await mails.all("k", result.good, 120)
    keeps_up = result.good / (time.monotonic() - started)
    numbers = iter(range(10**6))

    async def ours() -> Figure:
        prefix = f"r{next(numbers)}"
        seconds = lab.seconds if lab.smoke else max(8.0, lab.seconds)
        mails = Mails(lab)
        result, cpu = await lab.measure(
            **spec, params={"ids": ids, "email": prefix}, connections=64, rate=keeps_up / 2, seconds=seconds, warmup=0
        )
        lags = await mails.all(prefix, result.good, 60)
        await settle(lab)
        return Figure(
            value=percentiles(lags).p99,
            done=len(lags),
            latency=percentiles(lags),
            open=result.latency,
            open_rate=keeps_up / 2,
            cpu=cpu,
            notes={"mails": len(lags), "keeps_up_at_per_second": round(keeps_up)},
        )

    return {"ours": ours}


def judge(figures: Figures) -> list[Row]:
    spread = Spread.of([f.value for f in figures["ours"]])
    rate = figures["ours"][0].open_rate or 0
    return [
        Row(
            scenario=TITLE,
            unit="ms, p99",
            ours=rounded(spread.median),
            peer=None,
            limit=None,
            ratio_to_peer=None,
            ratio_to_limit=None,
            goal="p99 <= 250 ms",
            met=spread.median <= 250,
            remark=f"{rate:.0f} orders/s; the rounds' p99 were {spread.low:.0f} to {spread.high:.0f} ms",
        )
    ]


SCENARIOS = [
    Scenario(
        name="mail", title=TITLE, goal="p99 <= 250 ms", prepare=prepare, judge=judge, unit="ms, p99", group="orders"
    )
]
