"""The resources that each container uses, from which requests and limits are set.

A shell in each container reads its cgroup once a second. Per container, the report has the CPU of a start until ready;
millicores and working set (MiB) when idle, under the steady load and under heavy load, each on average and in the
highest second; and the most memory ever charged, including page cache.
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
IDLE_SECONDS, LOAD_SECONDS, HEAVY_LOAD_SECONDS = 30, 30, 40
# One line per second: uptime in s, CPU in us, and in bytes: memory, reclaimable page cache in it, peak memory.
SAMPLE = """
g=/sys/fs/cgroup
n=0
while [ $n -lt $1 ]; do
  read up _ < /proc/uptime
  if [ -r $g/cpu.stat ]; then
    while read key value; do [ $key = usage_usec ] && cpu=$value; done < $g/cpu.stat
    while read key value; do [ $key = inactive_file ] && cache=$value; done < $g/memory.stat
    read memory < $g/memory.current; peak=0
    [ -r $g/memory.peak ] && read peak < $g/memory.peak
  else
    read cpu < $g/cpuacct/cpuacct.usage; cpu=$((cpu / 1000))
    while read key value; do [ $key = total_inactive_file ] && cache=$value; done < $g/memory/memory.stat
    read memory < $g/memory/memory.usage_in_bytes
    read peak < $g/memory/memory.max_usage_in_bytes
  fi
  echo $up $cpu $memory $cache $peak
  n=$((n + 1)); sleep 1
done
"""
# The memory of the migration, which has exited before its cgroup could be read.
MIGRATE = """
import resource, subprocess, sys
subprocess.run([sys.executable, "-m", "market." + sys.argv[1], "migrate"], check=True, stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_maxrss / 1024, used.ru_utime + used.ru_stime)
"""
MIB = 1024 * 1024


@dataclass(frozen=True)
class Usage:
    """Of one container over some time: millicores on average and in the highest second, working set and peak in MiB."""

    cpu: int
    cpu_max: int
    memory: int
    memory_max: int

    @classmethod
    def parse(cls, lines: str) -> Usage:
        rows = [tuple(map(float, line.split())) for line in lines.splitlines()]
        rates = [(b[1] - a[1]) / (b[0] - a[0]) / 1000 for a, b in itertools.pairwise(rows) if b[0] > a[0]]
        average = (rows[-1][1] - rows[0][1]) / (rows[-1][0] - rows[0][0]) / 1000
        sets = [(row[2] - row[3]) / MIB for row in rows]
        return cls(
            round(average), round(max(rates)), round(max(sets)), round(max(max(row[2], row[4]) for row in rows) / MIB)
        )


def containers() -> list[tuple[str, str, str]]:
    """Return (name, pod, container) of each running container."""
    services = [(name, pod, "service") for name in cluster.SERVICES for pod in cluster.names(name)]
    return services + [(name, f"{name}-0", name) for name in STORES]


async def measure(seconds: int) -> dict[str, Usage]:
    """Return what each service and store uses over that time; of a service, the maximum of its pods."""
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
    found: dict[str, Usage] = {}
    for (name, _, _), run in zip(where, runs, strict=True):
        lines, _ = await run.communicate()
        assert run.returncode == 0
        one = Usage.parse(lines.decode())
        before = found.get(name, one)
        found[name] = Usage(*(max(a, b) for a, b in zip(vars(one).values(), vars(before).values(), strict=True)))
    return found


def measure_start(name: str) -> dict[str, float]:
    """Return the CPU seconds that a new pod of the service has used when it is ready: of two, the later one."""
    cluster.kubectl("rollout", "restart", f"deployment/{name}")
    cluster.wait_for_rollout(name)
    used = [
        float(cluster.kubectl("exec", pod, "-c", "service", "--", "sh", "-c", SAMPLE, "sample", "1").split()[1]) / 1e6
        for pod in cluster.names(name)
    ]
    return {"CPU seconds until ready": round(min(used), 2)}


async def create_products(shop: str, count: int) -> list[str]:
    """Create products with stock, enough for the largest possible order. Return their ids."""
    numbers = iter(range(count))
    created: list[str] = []

    async def run(session: aiohttp.ClientSession) -> None:
        for number in numbers:
            body = {"name": f"Line {number}", "description": "", "price": "1.00", "currency": "GBP", "stock": 1_000_000}
            async with session.post(f"{shop}/api/product", json=body) as response:
                assert response.status == 201
                created.append((await response.json())["id"])

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(run(session) for _ in range(16)))
    return created


async def heavy_load(shop: str, products: list[str], seconds: float) -> collections.Counter[str]:
    """Send requests without a pause: small orders, some of a thousand lines, long lists, the join in GraphQL, pages.

    Return the number of responses by request and status.
    """
    stopping = asyncio.get_running_loop().time() + seconds
    join = '{ orders(user: "heavy", limit: 20) { items { id items { quantity product { name price } } } } }'
    small = {"user": "heavy", "items": [{"product_id": products[0], "quantity": 1}]}
    large = {"user": "large", "items": [{"product_id": product, "quantity": 1} for product in products]}
    calls: list[tuple[str, str, Any]] = [
        ("GET", "/api/product?limit=100", None),
        ("POST", "/api/order", small),
        ("POST", "/graphql", {"query": join}),
        ("GET", "/api/order?user=heavy&limit=100", None),
        ("GET", "/", None),
        ("GET", f"/products/{products[0]}", None),
    ]
    statuses: collections.Counter[str] = collections.Counter()

    async def run(session: aiohttp.ClientSession, call: tuple[str, str, Any]) -> None:
        method, path, body = call
        while asyncio.get_running_loop().time() < stopping:
            async with session.request(method, shop + path, json=body) as response:
                await response.read()
                name = path.partition("?")[0].replace(products[0], "{id}")
                statuses[f"{method} {name} {response.status}"] += 1

    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=30), connector=aiohttp.TCPConnector(limit=0)
    ) as session:
        await asyncio.gather(*(run(session, call) for call in calls * 6), run(session, ("POST", "/api/order", large)))
    return statuses


async def test_every_container_stays_well_below_its_memory_limit(
    shop: str, products: list[str], report: Report
) -> None:
    found: dict[str, dict[str, Any]] = {name: {} for name in (*cluster.SERVICES, *STORES)}
    for name in cluster.SERVICES:
        found[name] |= await asyncio.to_thread(measure_start, name)
    await asyncio.to_thread(cluster.wait_until_all_are_ready)
    # Until the old pods have drained.
    await asyncio.sleep(25)
    for name, one in (await measure(IDLE_SECONDS)).items():
        found[name]["idle"] = vars(one)
    async with Load(shop, products) as load:
        await asyncio.sleep(5)
        for name, one in (await measure(LOAD_SECONDS)).items():
            found[name]["steady load"] = vars(one)
    assert load.failures == []
    thousand = await create_products(shop, 1000)
    under_heavy_load, statuses = await asyncio.gather(
        measure(HEAVY_LOAD_SECONDS), heavy_load(shop, thousand, HEAVY_LOAD_SECONDS)
    )
    report["responses under heavy load"] = dict(statuses)
    for name, one in under_heavy_load.items():
        found[name]["heavy load"] = vars(one)
    for name, module in MIGRATING.items():
        pod = cluster.names(name)[0]
        memory, cpu = cluster.kubectl("exec", pod, "-c", "service", "--", "python", "-c", MIGRATE, module).split()
        found[name]["migrate"] = {"memory": round(float(memory)), "CPU seconds": round(float(cpu), 2)}
    for name, usage in found.items():
        report[f"resources of {name}"] = usage
    limits = {
        c["name"] if c["name"] != "service" else name: c["resources"]["limits"] for name in found for c in _specs(name)
    }
    # The largest working set is below four fifths of the limit.
    for name in found:
        largest = max(found[name][when]["memory"] for when in ("idle", "steady load", "heavy load"))
        assert largest < 0.8 * _mib(limits[name]["memory"]), (name, largest, json.dumps(limits[name]))


def _specs(name: str) -> list[dict[str, Any]]:
    pod: dict[str, Any] = cluster.pods(name)[0]
    return list(pod["spec"]["containers"])


def _mib(text: str) -> float:
    return float(text.removesuffix("Gi")) * 1024 if text.endswith("Gi") else float(text.removesuffix("Mi"))
