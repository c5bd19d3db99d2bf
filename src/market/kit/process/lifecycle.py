"""The lifecycle of a service's process: load the configuration, build, serve, drain, exit.

    # __main__.py
    run("products", Config, build, commands={"migrate": migrate})

`build(config, process)` is an async context manager that yields the service's Server. While it waits for a store, the
admin port reports that the process is alive, but not ready.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import uvloop
from prometheus_client import REGISTRY

from market.kit import clock as kit_clock
from market.kit import config as kit_config
from market.kit import faults
from market.kit.http.server import HttpServer
from market.kit.process import logs, tracing
from market.kit.process.health import Admin, Health
from market.kit.process.tasks import report_unhandled_exceptions

C = TypeVar("C", bound=kit_config.ServiceConfig)
log = logs.get_logger("lifecycle")


class Server(Protocol):
    """A server that a process runs: HTTP, gRPC or a Kafka consumer."""

    async def start(self) -> None:
        """Start serving, and return once requests are accepted."""

    async def drain(self, seconds: float) -> None:
        """Serve for `seconds` more, in which the callers notice that the process is not ready.

        May return earlier, for example if every call would fail because a store is unavailable.
        """

    async def stop(self, grace_seconds: float) -> None:
        """Stop accepting requests, finish those in flight within `grace_seconds`, and return."""


@dataclass
class Process:
    """Objects that the parts of a process share. `faults` is None except in tests."""

    health: Health = field(default_factory=Health)
    tracer: tracing.Tracer = field(default_factory=tracing.Tracer)
    clock: kit_clock.Clock = kit_clock.utc_now
    faults: faults.Faults | None = None


class CommandError(Exception):
    """A command failed. The text is for the operator, and is logged instead of a traceback."""


Build = Callable[[C, Process], AbstractAsyncContextManager[Server]]
Command = Callable[[C, list[str]], Coroutine[Any, Any, int | None]]


def run(
    name: str,
    config_type: type[C],
    build: Build[C],
    *,
    commands: Mapping[str, Command[C]] | None = None,
    argv: list[str] | None = None,
) -> None:
    """Run `python -m market.<name>`: serve, or run the command that the first argument names. Exits the process.

    The exit status of a server is 0 after SIGTERM or SIGINT, and 1 if it cannot serve. A command returns its own exit
    status. It is 1 if the command raises CommandError or OSError, and 130 after SIGINT. For an invalid command or
    configuration, the status is 2.
    """
    args = sys.argv[1:] if argv is None else argv
    commands = commands or {}
    usage = f"usage: CONFIG_PATH=FILE python -m market.{name}" + (f" [{'|'.join(commands)}]" if commands else "")
    if args and args[0] in ("-h", "--help"):
        print(usage)
        sys.exit(0)
    if args and args[0] not in commands:
        print(f"{usage}\nunknown command: {args[0]}", file=sys.stderr)
        sys.exit(2)
    path = os.environ.get("CONFIG_PATH")
    if not path:
        print(f"market.{name}: CONFIG_PATH is not set; it must be the path of the configuration file", file=sys.stderr)
        sys.exit(2)
    try:
        config = kit_config.load(path, config_type, os.environ)
    except kit_config.ConfigError as e:
        print(f"market.{name}: {e}", file=sys.stderr)
        sys.exit(2)
    logs.setup(name, config.log)
    work: Coroutine[Any, Any, int | None] = commands[args[0]](config, args[1:]) if args else serve(name, config, build)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            sys.exit(runner.run(work) or 0)
    except KeyboardInterrupt:
        sys.exit(130)
    except kit_config.ConfigError as e:
        # Some settings are checked only when they are used.
        print(f"market.{name}: {path}: {e}", file=sys.stderr)
        sys.exit(2)
    except CommandError as e:
        log.error("command failed", command=args[0] if args else None, reason=str(e))
        sys.exit(1)
    except OSError as e:
        reason = e.strerror or str(e)
        if args:
            log.error("command failed", command=args[0], reason=reason)
        else:
            log.error("cannot serve", reason=reason)
        sys.exit(1)


async def serve(name: str, config: C, build: Build[C]) -> int:
    """Serve until SIGTERM or SIGINT, drain, and return the exit status."""
    process = Process(
        tracer=tracing.setup(name, config.tracing),
        clock=kit_clock.clock(config.faults),
        faults=faults.Faults.from_config(config.faults),
    )
    health = process.health
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    report_unhandled_exceptions(loop)
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stopping.set)
    admin = HttpServer(Admin(health, REGISTRY), config.admin.host, config.admin.port)
    await admin.start()
    try:
        serving = asyncio.create_task(_serve_until(stopping, config, build, process))
        stopped = asyncio.create_task(stopping.wait())
        await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not health.started and not serving.done():
            # The process is still waiting for a dependency. `build` finishes requests that are served in the meantime.
            serving.cancel()
        stopped.cancel()
        with suppress(asyncio.CancelledError):
            await serving
    finally:
        await admin.stop(1)
    log.info("stopped")
    return 0


async def _serve_until(stopping: asyncio.Event, config: C, build: Build[C], process: Process) -> None:
    async with build(config, process) as server:
        await server.start()
        # Exclude the objects created so far from garbage collections, because they live as long as the process. Each
        # scan of them would pause all requests for 50 ms.
        gc.freeze()
        process.health.started = True
        log.info("ready")
        await stopping.wait()
        log.info("draining")
        process.health.draining = True
        await server.drain(config.shutdown.drain_seconds)
        await server.stop(config.shutdown.grace_seconds)
