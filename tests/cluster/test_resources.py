"""What each container takes, so that requests and limits can be set from it: starting, idle, under load, at its most.

Each container reads its own control group once a second (its shell does; nothing is installed). The report then has,
per container: the CPU of a start until ready and its highest second, millicores and working set (MiB) idle, under the
steady load and under as much as the machine gives, and the highest memory that was charged to it, page cache included.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
import json
from dataclasses import dataclass
from typing import Any

import aiohttp

from tests.cluster import cluster
from tests.cluster.conftest import Report
from tests.cluster.load import Load

STORES = ("postgresql", "redis", "mongodb", "kafka", "mail")
MIGRATING = {"product-service": "products", "inventory-service": "inventory", "order-service": "orders"}
IDLE_SECONDS, LOAD_SECONDS, PRESSED_SECONDS = 30, 30, 40
# One line a second: uptime in s, CPU in us, memory in bytes, that much of it page cache that can go, the most so far.
SAMPLE = """
g=/sys/fs/cgroup
n=0
while [ $n -lt $1 ]; do
  read up _ < /proc/uptime
  if [ -r $g/cpu.stat ]; then
    while read key value; do [ $key = usage_usec ] && cpu=$value; done < $g/cpu.stat
    while read key value; do [ $key = inactive_file ] && cache=$value; done < $g/memory.stat
    read memory < $g/memory.current; most=0
    [ -r $g/memory.peak ] && read most < $g/memory.peak
  else
    read cpu < $g/cpuacct/cpuacct.usage; cpu=$((cpu / 1000))
    while read key value; do [ $key = total_inactive_file ] && cache=$value; done < $g/memory/memory.stat
    read memory < $g/memory/memory.usage_in_bytes
    read most < $g/memory/memory.max_usage_in_bytes
  fi
  echo $up $cpu $memory $cache $most
  n=$((n + 1)); sleep 1
done
"""
# The memory of a process that runs before the service does, and is gone when one could look.
MIGRATE = """
import resource, subprocess, sys
subprocess.run([sys.executable, "-m", "market." + sys.argv[1], "migrate"], check=True, stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_maxrss / 1024, used.ru_utime + used.ru_stime)
"""
MIB = 1024 * 1024


@dataclass(frozen=True)
class Taken:
    """By one container over a time: millicores on average and in the highest second, working set and peak in MiB."""

    cpu: int
    cpu_most: int
    memory: int
    memory_most: int

    @classmethod
    def of(cls, lines: str) -> Taken:
        rows = [tuple(map(float, line.split())) for line in lines.splitlines()]
        rates = [(b[1] - a[1]) / (b[0] - a[0]) / 1000 for a, b in itertools.pairwise(rows) if b[0] > a[0]]
        average = (rows[-1][1] - rows[0][1]) / (rows[-1][0] - rows[0][0]) / 1000
        sets = [(row[2] - row[3]) / MIB for row in rows]
        return cls(
            round(average), round(max(rates)), round(max(sets)), round(max(max(row[2], row[4]) for row in rows) / MIB)
        )


def containers() -> list[tuple[str, str, str]]:
    """Name, pod and container of all that runs."""
    services = [(name, pod, "service") for name in cluster.SERVICES for pod in cluster.names(name)]
    return services + [(name, f"{name}-0", name) for name in STORES]


async def taken(seconds: int) -> dict[str, Taken]:
    """What each takes over that time; of a service's pods the one that takes most."""
    where = containers()
    runs = await asyncio.gather(
        *(
            asyncio.create_subprocess_exec(
                "kubectl",
                "-n",
                cluster.NAMESPACE,
                "exec",
                pod,
                "-c",
                container,
                "--",
                "sh",
                "-c",
                SAMPLE,
                "sample",
                str(seconds),
                stdout=asyncio.subprocess.PIPE,
            )
            for _, pod, container in where
        )
    )
    found: dict[str, Taken] = {}
    for (name, _, _), run in zip(where, runs, strict=True):
        lines, _ = await run.communicate()
        assert run.returncode == 0
        one = Taken.of(lines.decode())
        before = found.get(name, one)
        found[name] = Taken(*(max(a, b) for a, b in zip(vars(one).values(), vars(before).values(), strict=True)))
    return found


def started(name: str) -> dict[str, float]:
    """The CPU seconds that a new pod of a service had taken when it was ready: of two, the one that came last."""
    cluster.kubectl("rollout", "restart", f"deployment/{name}")
    cluster.rolled_out(name)
    used = [
        float(cluster.kubectl("exec", pod, "-c", "service", "--", "sh", "-c", SAMPLE, "sample", "1").split()[1]) / 1e6
        for pod in cluster.names(name)
    ]
    return {"CPU seconds until ready": round(min(used), 2)}


async def many_products(shop: str, count: int) -> list[str]:
    """New ones, with stock: enough for the largest order that there may be."""
    numbers = iter(range(count))
    made: list[str] = []

    async def go_on(session: aiohttp.ClientSession) -> None:
        for number in numbers:
            body = {"name": f"Line {number}", "description": "", "price": "1.00", "currency": "GBP", "stock": 1_000_000}
            async with session.post(f"{shop}/api/product", json=body) as response:
                assert response.status == 201
                made.append((await response.json())["id"])

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(go_on(session) for _ in range(16)))
    return made


async def press(shop: str, products: list[str], seconds: float) -> collections.Counter[int]:
    """As much as the machine gives: small orders, some of a thousand lines, long lists, the join in GraphQL.

    The answers by status.
    """
    stopping = asyncio.get_running_loop().time() + seconds
    join = '{ orders(user: "press", limit: 20) { items { id items { quantity product { name price } } } } }'
    small = {"user": "press", "items": [{"product_id": products[0], "quantity": 1}]}
    large = {"user": "large", "items": [{"product_id": id, "quantity": 1} for id in products]}
    calls: list[tuple[str, str, Any]] = [
        ("GET", "/api/product?limit=100", None),
        ("POST", "/api/order", small),
        ("POST", "/graphql", {"query": join}),
        ("GET", "/api/order?user=press&limit=100", None),
    ]
    statuses: collections.Counter[int] = collections.Counter()

    async def go_on(session: aiohttp.ClientSession, call: tuple[str, str, Any]) -> None:
        method, path, body = call
        while asyncio.get_running_loop().time() < stopping:
            async with session.request(method, shop + path, json=body) as response:
                await response.read()
                statuses[response.status] += 1

    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=30), connector=aiohttp.TCPConnector(limit=0)
    ) as session:
        await asyncio.gather(
            *(go_on(session, call) for call in calls * 6), go_on(session, ("POST", "/api/order", large))
        )
    return statuses


async def test_what_each_container_takes(shop: str, goods: list[str], report: Report) -> None:
    found: dict[str, dict[str, Any]] = {name: {} for name in (*cluster.SERVICES, *STORES)}
    for name in cluster.SERVICES:
        found[name] |= await asyncio.to_thread(started, name)
    await asyncio.to_thread(cluster.all_ready)
    # The old pods drain.
    await asyncio.sleep(25)
    for name, one in (await taken(IDLE_SECONDS)).items():
        found[name]["idle"] = vars(one)
    async with Load(shop, goods) as load:
        await asyncio.sleep(5)
        for name, one in (await taken(LOAD_SECONDS)).items():
            found[name]["steady load"] = vars(one)
    assert load.failures == []
    products = await many_products(shop, 1000)
    pressed, statuses = await asyncio.gather(taken(PRESSED_SECONDS), press(shop, products, PRESSED_SECONDS))
    report["answers while pressed"] = dict(statuses)
    for name, one in pressed.items():
        found[name]["pressed"] = vars(one)
    for name, module in MIGRATING.items():
        pod = cluster.names(name)[0]
        memory, cpu = cluster.kubectl("exec", pod, "-c", "service", "--", "python", "-c", MIGRATE, module).split()
        found[name]["migrate"] = {"memory": round(float(memory)), "CPU seconds": round(float(cpu), 2)}
    for name, figures in found.items():
        report[f"resources of {name}"] = figures
    limits = {
        c["name"] if c["name"] != "service" else name: c["resources"]["limits"] for name in found for c in _specs(name)
    }
    # Nothing comes near its limit: the working set at its most is below four fifths of it.
    for name in found:
        most = max(found[name][when]["memory"] for when in ("idle", "steady load", "pressed"))
        assert most < 0.8 * _mib(limits[name]["memory"]), (name, most, json.dumps(limits[name]))


def _specs(name: str) -> list[dict[str, Any]]:
    pod: dict[str, Any] = cluster.pods(name)[0]
    return list(pod["spec"]["containers"])


def _mib(text: str) -> float:
    return float(text.removesuffix("Gi")) * 1024 if text.endswith("Gi") else float(text.removesuffix("Mi"))
