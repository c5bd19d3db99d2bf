"""Run the `migrate` command of several services in one process, to start Python only once.

Reads from standard input a JSON object by service: the path of the configuration and the environment for it.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from typing import Any

import uvloop

from market.kit import config as kit_config
from market.kit.process import logs


async def _migrate(service: str, path: str, environ: dict[str, str]) -> None:
    config: Any = kit_config.load(path, importlib.import_module(f"market.{service}.config").Config, environ)
    await importlib.import_module(f"market.{service}.app").migrate(config, [])


async def _main(jobs: dict[str, Any]) -> None:
    await asyncio.gather(*(_migrate(service, job["config"], job["env"]) for service, job in jobs.items()))


if __name__ == "__main__":
    logs.setup("migrate", kit_config.Log(format="console"))
    uvloop.run(_main(json.load(sys.stdin)))
