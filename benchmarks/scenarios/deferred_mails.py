"""From an order to its mail, while another domain defers thousands of mails, against the same without any deferred."""

from __future__ import annotations

import asyncio
import itertools
import re
import statistics
import time
from typing import Any

import httpx

from benchmarks.measurements import Measurement, Row, percentiles
from benchmarks.scenario import Contestants, Measurements, Scenario, rounded, values
from benchmarks.scenarios.mails import MailLog
from benchmarks.testbed import Testbed, outbox_drained

TITLE = "order to mail, while another domain defers 5,000 mails"
GOAL = "at most twice the usual time"
_DOMAIN = "deferring.test"
_RATE = 20.0
_DRAIN_SECONDS = 240.0
_DEFERRED = re.compile(r"^market_notifications_deferred_mails\{[^}]*\} (\S+)$", re.MULTILINE)


async def prepare(testbed: Testbed) -> Contestants:
    ids = await testbed.fill()
    testbed.stack.resume("notifications")
    testbed.pin()
    spec: dict[str, Any] = {"port": testbed.port("orders"), "workload": "orders"}
    deferring = 100 if testbed.smoke else 5_000
    # Warm up, and consume what other scenarios have left in the topic.
    mails = MailLog(testbed.directory)
    await testbed.load(**spec, params={"ids": ids, "email": "w"}, connections=1, count=20)
    await mails.wait_for("w", 20, 120)
    numbers = itertools.count()

    async def measure_mails(notes: dict[str, Any]) -> Measurement:
        prefix = f"q{next(numbers)}"
        mails = MailLog(testbed.directory)
        result, cpu_ms = await testbed.load_and_cpu(
            **spec,
            params={"ids": ids, "email": prefix},
            connections=16,
            rate=_RATE,
            seconds=testbed.seconds if testbed.smoke else max(15.0, testbed.seconds),
            warmup=0,
        )
        lags = await mails.wait_for(prefix, result.succeeded, 60)
        latency = percentiles(lags)
        return Measurement(
            value=latency.p50,
            operations=len(lags),
            latency=latency,
            open_loop=result.latency,
            open_loop_rate=_RATE,
            cpu_ms=cpu_ms,
            notes={"mails": len(lags), **notes},
        )

    async def usual() -> Measurement:
        await outbox_drained(testbed.urls["mongodb"])
        return await measure_mails({})

    async def beside_deferred() -> Measurement:
        prefix = f"d{next(numbers)}"
        mails = MailLog(testbed.directory)
        await _inject(testbed, {"mode": "451 4.3.0 later", "stage": "rcpt", "to": f"@{_DOMAIN}"})
        try:
            await testbed.load(
                **spec, params={"ids": ids, "email": prefix, "domain": _DOMAIN}, connections=64, count=deferring
            )
            await outbox_drained(testbed.urls["mongodb"])
            measured = await measure_mails({})
            measured.notes["deferred"] = deferred = await _count_deferred(testbed, deferring)
        finally:
            await _inject(testbed)
        if deferred < deferring:
            raise RuntimeError(f"{deferred} of {deferring} mails were deferred")
        started = time.monotonic()
        await mails.wait_for(prefix, deferring, _DRAIN_SECONDS)
        measured.notes["drained_after_seconds"] = round(time.monotonic() - started, 1)
        return measured

    return {"ours": beside_deferred, "usual": usual}


async def _inject(testbed: Testbed, *faults: dict[str, Any]) -> None:
    async with httpx.AsyncClient() as client:
        (await client.post(f"{testbed.urls['mail']}/api/faults", json=list(faults))).raise_for_status()


async def _count_deferred(testbed: Testbed, expected: int) -> int:
    """Return how many mails are deferred, once that many are or after 20 s. It includes those in flight."""
    async with httpx.AsyncClient() as client:
        for _ in range(20):
            response = await client.get(f"{testbed.urls['admin']['notifications']}/metrics")
            deferred = int(sum(map(float, _DEFERRED.findall(response.text))))
            if deferred >= expected:
                break
            await asyncio.sleep(1)
    return deferred


def judge(measurements: Measurements) -> list[Row]:
    ours, usual = measurements["ours"], measurements["usual"]
    ratios = [a.value / b.value for a, b in zip(ours, usual, strict=True)]
    p99 = [a.latency.p99 / b.latency.p99 for a, b in zip(ours, usual, strict=True) if a.latency and b.latency]
    deferred = min(m.notes["deferred"] for m in ours)
    return [
        Row(
            scenario=TITLE,
            unit="ms, p50",
            ours=rounded(statistics.median(values(ours))),
            peer=rounded(statistics.median(values(usual))),
            limit=None,
            ratio_to_peer=rounded(statistics.median(ratios)),
            ratio_to_limit=None,
            spread_to_peer=[rounded(min(ratios)), rounded(max(ratios))],
            goal=GOAL,
            met=statistics.median(ratios) <= 2,
            remark=f"peer: without deferred mails; {_RATE:g} orders/s; at least {deferred} mails deferred; "
            f"ratio of the p99: {statistics.median(p99):.2g}",
        )
    ]


SCENARIOS = [
    Scenario(
        name="deferred-mails",
        title=TITLE,
        goal=GOAL,
        prepare=prepare,
        judge=judge,
        unit="ms, p50",
        group="orders",
        rounds=3,
        timeout_seconds=600,
    )
]
