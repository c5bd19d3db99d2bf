"""pgbench as a contestant: the limit of PostgreSQL alone, or the straightforward way in SQL."""

from __future__ import annotations

import math
import os
import re
import time
from pathlib import Path
from urllib.parse import urlsplit

from market_dev.stack.servers.postgres import Postgres

from benchmarks.measurements import Measurement, percentiles
from benchmarks.testbed import Testbed

_CONNECT_TIME = re.compile(r"^initial connection time = ([0-9.]+) ms", re.MULTILINE)
_TPS = re.compile(r"^tps = ([0-9.]+)", re.MULTILINE)


async def pgbench(
    testbed: Testbed,
    database: str,
    scripts: list[str],
    *,
    clients: int,
    seconds: float | None = None,
    core: int | None = 0,
    rate: float | None = None,
) -> Measurement:
    """Measure transactions per second: scripts chosen at random, as prepared statements.

    With a `rate` it is an open loop, and latency counts from when a transaction was due.
    """
    server = testbed.stack.server("postgres")
    assert isinstance(server, Postgres)
    url = urlsplit(testbed.urls[f"postgres_{database}"])
    directory = testbed.directory / "pgbench"
    directory.mkdir(exist_ok=True)
    files: list[str | Path] = []
    for number, script in enumerate(scripts):
        (directory / f"{number}.sql").write_text(script)
        files += ["-f", directory / f"{number}.sql"]
    wanted = testbed.seconds if seconds is None else seconds
    binary = server.installed.root / "bin" / "pgbench"
    connection = ["-h", "127.0.0.1", "-p", str(url.port), "-U", url.username, url.path[1:]]
    for _ in range(3):
        for old in directory.glob("log.*"):
            old.unlink()
        # The duration given to pgbench includes the time in which its clients connect: seconds, for 256 of them.
        connect_seconds = testbed.pgbench_connect_seconds.setdefault(clients, 0.01 * clients)
        duration = max(2, math.ceil(wanted + connect_seconds))
        args = [
            *(binary, "-n", "-M", "prepared", "-c", str(clients), "-j", "1"),
            *(["-t", "20"] if testbed.smoke else ["-T", str(duration)]),
            *("-l", "--log-prefix", directory / "log", *files),
            *(["-R", f"{rate:.3f}"] if rate else []),
            *connection,
        ]
        before, started = testbed.cpu_seconds(), time.perf_counter()
        times_before = os.times()
        out = await testbed.run([str(a) for a in args], {"PGPASSWORD": url.password or ""}, core=core)
        after, times_after = testbed.cpu_seconds(), os.times()
        tps_line = _TPS.search(out)
        if tps_line is None and "actually processed: 0" not in out:
            raise RuntimeError(f"unexpected output of pgbench: {out}")
        took = _CONNECT_TIME.search(out)
        needed = 1.3 * float(took[1]) / 1000 if took else min(20, 2 * duration)
        testbed.pgbench_connect_seconds[clients] = needed
        if tps_line and (testbed.smoke or needed <= connect_seconds + wanted / 2):
            break
    # Without a transaction in all that time, the rate is less than this.
    tps = float(tps_line[1]) if tps_line else 1 / duration
    lines = [line for log in directory.glob("log.*") for line in log.read_text().splitlines()]
    latencies = [int(line.split()[2]) / 1e6 for line in lines]
    operations = max(1, len(latencies))
    own_seconds = (
        times_after.children_user
        + times_after.children_system
        - times_before.children_user
        - times_before.children_system
    )
    cpu_ms = {
        "postgres": round(1000 * (after["postgres"] - before["postgres"]) / operations, 4),
        "pgbench": round(1000 * own_seconds / operations, 4),
    }
    return Measurement(
        value=tps,
        operations=len(latencies),
        latency=percentiles(latencies),
        cpu_ms=cpu_ms,
        notes={"seconds": round(time.perf_counter() - started, 1)},
    )


async def both_loops(
    testbed: Testbed, database: str, scripts: list[str], *, clients: int, open_loop_rate: float
) -> Measurement:
    """Measure a closed loop, then the latency of an open loop at that rate."""
    measured = await pgbench(testbed, database, scripts, clients=clients)
    measured.open_loop_rate = open_loop_rate
    open_loop = await pgbench(
        testbed, database, scripts, clients=clients, seconds=testbed.open_loop_seconds, rate=open_loop_rate
    )
    measured.open_loop = open_loop.latency if open_loop.operations else None
    return measured
