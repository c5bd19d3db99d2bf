"""The shop of two builds: that of an earlier commit is checked out and installed, and both are started."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cpu import assign_cores
from benchmarks.load import ROOT, LoadDriver
from benchmarks.market_up import MarketUp, market_up
from benchmarks.testbed import product_ids, read_pages

PRODUCTS = 1000
# Per build; `market up` uses 21.
PORTS = 22


class NotInRepository(Exception):
    """The commit is not in this clone, as in a shallow one."""


class Build(LoadDriver):
    """A running shop of one build, which is called "ours" or "before"."""

    def __init__(self, name: str, shop: MarketUp, *, seconds: float, warmup: float) -> None:
        super().__init__(seconds=seconds, warmup=warmup)
        self.name = name
        self.shop = shop
        self.product_ids: list[str] = []
        # The paths of lists of 20 products, each after the end of the one before.
        self.pages: list[str] = []

    @property
    def pids(self) -> dict[str, int]:
        return self.shop.pids

    def port(self, service: str) -> int:
        """Return the port of graphql, products, orders or inventory."""
        return int(self.shop.urls[service].rpartition(":")[2])

    async def fill(self, count: int) -> None:
        """Create a catalogue of `count` products, with stock for all rounds together."""
        load = {"workload": "catalogue", "params": {"prefix": "c"}, "connections": 32, "count": count}
        await self.load(port=self.port("products"), **load)
        self.product_ids = await product_ids(self.shop.urls["products"], count)
        self.pages = list(await read_pages(self.shop.urls["products"], count // 20))

    def pause(self, process: str) -> None:
        """Stop the process until `resume`."""
        os.kill(self.pids[process], signal.SIGSTOP)

    def resume(self, process: str) -> None:
        os.kill(self.pids[process], signal.SIGCONT)


@dataclass(frozen=True)
class Checkout:
    """An installed build. commit: abbreviated. command: its `market`."""

    commit: str
    command: Path


# Started in the same way as an earlier build: by the installed command.
OWN_COMMAND = Path(sys.executable).with_name("market")


def pin(builds: Sequence[Build], *alone: str) -> None:
    """Give the processes of these names the first core, in all builds; without names, unpin everything."""
    pids = {f"{build.name} {name}": pid for build in builds for name, pid in build.pids.items()}
    cores = assign_cores(pids, [f"{build.name} {name}" for build in builds for name in alone])
    for build in builds:
        build.generator_cores = cores


@asynccontextmanager
async def running(
    commands: Mapping[str, Path],
    directory: Path,
    port_base: int,
    *,
    kafka: str,
    seconds: float,
    warmup: float,
    products: int = PRODUCTS,
) -> AsyncIterator[list[Build]]:
    """Start a shop by each of the commands, named like them, and fill its catalogue.

    commands: `market` of each build
    port_base: the first of PORTS ports for each build
    """
    async with AsyncExitStack() as stack:
        builds = []
        for number, (name, command) in enumerate(commands.items()):
            options: dict[str, Any] = {"kafka": kafka, "empty": True, "command": [command]}
            starting = market_up(directory / name, port_base + number * PORTS, **options)
            shop = await stack.enter_async_context(starting)
            build = Build(name, shop, seconds=seconds, warmup=warmup)
            await build.fill(products)
            stack.callback(build.resume, "notifications")
            builds.append(build)
            print(f"  {name}: the shop of {command} is ready", flush=True)
        yield builds


def install(ref: str, root: Path = ROOT) -> Checkout:
    """Check out the commit below .market/before, once, and install it there.

    Raises NotInRepository, and subprocess.CalledProcessError if it cannot be installed.
    """
    try:
        commit = _git(root, "rev-parse", "--short=12", "--verify", f"{ref}^{{commit}}")
    except subprocess.CalledProcessError as e:
        raise NotInRepository(
            f"commit {ref} is not in this clone; if it is a shallow one, `git fetch --unshallow` gets it"
        ) from e
    directory = root / ".market" / "before" / commit
    if not directory.is_dir():
        unpacked = directory.with_suffix(".partial")
        shutil.rmtree(unpacked, ignore_errors=True)
        unpacked.mkdir(parents=True)
        archive = unpacked / "archive.tar"
        _git(root, "archive", "--output", str(archive), commit)
        with tarfile.open(archive) as tar:
            tar.extractall(unpacked, filter="data")
        archive.unlink()
        unpacked.rename(directory)
    # Called from make itself, so without its variables.
    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "ARGS", "REF")}
    subprocess.run(["make", "--no-print-directory", "-C", directory, "install"], check=True, env=env)
    return Checkout(commit, directory / ".venv" / "bin" / "market")


def _git(root: Path, *args: str) -> str:
    return subprocess.run(["git", "-C", root, *args], check=True, capture_output=True, text=True).stdout.strip()
