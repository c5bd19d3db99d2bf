"""pgbench as a contestant: the store's own limit, or the plain way of doing it in SQL."""

from __future__ import annotations

import math
import os
import re
import time
from pathlib import Path
from urllib.parse import urlsplit

from market_dev.stack.servers.postgres import Postgres

from benchmarks.figures import Figure, percentiles
from benchmarks.lab import Lab

_CONNECTING = re.compile(r"^initial connection time = ([0-9.]+) ms", re.MULTILINE)
_TPS = re.compile(r"^tps = ([0-9.]+)", re.MULTILINE)


async def pgbench(
    lab: Lab,
    database: str,
    scripts: list[str],
    *,
    clients: int,
    seconds: float | None = None,
    core: int | None = 0,
    rate: float | None = None,
) -> Figure:
    """Transactions per second of the scripts, chosen at random, as prepared statements.

    At a fixed `rate` of arrivals latency counts from when a transaction was due, as pgbench's log has it.
    """
    server = lab.stack.server("postgres")
    assert isinstance(server, Postgres)
    url = urlsplit(lab.urls[f"postgres_{database}"])
    folder = lab.directory / "pgbench"
    folder.mkdir(exist_ok=True)
    files: list[str | Path] = []
    for number, script in enumerate(scripts):
        (folder / f"{number}.sql").write_text(script)
        files += ["-f", folder / f"{number}.sql"]
    wanted = lab.seconds if seconds is None else seconds
    binary = server.installed.root / "bin" / "pgbench"
    for _ in range(3):
        for old in folder.glob("log.*"):
            old.unlink()
        # pgbench counts the time in which its clients connect to that for which it runs: seconds for 256 of them.
        connecting = lab.connecting.setdefault(clients, 0.01 * clients)
        length = max(2, math.ceil(wanted + connecting))
        args = [
            binary,
            "-n",
            "-M",
            "prepared",
            "-c",
            str(clients),
            "-j",
            "1",
            *(["-t", "20"] if lab.smoke else ["-T", str(length)]),
            "-l",
            "--log-prefix",
            folder / "log",
            *files,
            *(["-R", f"{rate:.3f}"] if rate else []),
            "-h",
            "127.0.0.1",
            "-p",
            str(url.port),
            "-U",
            url.username,
            url.path[1:],
        ]
        before, started = lab.cpu(), time.perf_counter()
        times = os.times()
        out = await lab.run([str(a) for a in args], {"PGPASSWORD": url.password or ""}, core=core)
        after, own = lab.cpu(), os.times()
        found = _TPS.search(out)
        if found is None and "actually processed: 0" not in out:
            raise RuntimeError(f"pgbench says {out}")
        took = _CONNECTING.search(out)
        lab.connecting[clients] = 1.3 * float(took[1]) / 1000 if took else min(20, 2 * length)
        if found and (lab.smoke or lab.connecting[clients] <= connecting + wanted / 2):
            break
    # Not one in all that time: fewer than this.
    tps = float(found[1]) if found else 1 / length
    latencies = [int(line.split()[2]) / 1e6 for log in folder.glob("log.*") for line in log.read_text().splitlines()]
    done = max(1, len(latencies))
    cpu = {n: round(1000 * (after[n] - before[n]) / done, 4) for n in ("postgres",)}
    cpu["pgbench"] = round(
        1000 * (own.children_user + own.children_system - times.children_user - times.children_system) / done, 4
    )
    seconds_in_all = round(time.perf_counter() - started, 1)
    return Figure(
        value=tps, done=len(latencies), latency=percentiles(latencies), cpu=cpu, notes={"seconds": seconds_in_all}
    )


async def both(lab: Lab, database: str, scripts: list[str], *, clients: int, at: float) -> Figure:
    """As fast as it goes, and the latency at a fixed rate."""
    figure = await pgbench(lab, database, scripts, clients=clients)
    figure.open_rate = at
    opened = await pgbench(lab, database, scripts, clients=clients, seconds=lab.open_seconds, rate=at)
    figure.open = opened.latency if opened.done else None
    return figure
