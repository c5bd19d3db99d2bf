"""All processes of the table together: started in parallel, kept running, stopped in order.

async with Stack(Options(data, port_base=8080)) as stack:
    await stack.start()
    stack.kill("orders")          # it comes back by itself, on the same port
"""

from __future__ import annotations

import asyncio
import json
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from market_dev.stack import processes as spawn
from market_dev.stack.data_directory import Directory
from market_dev.stack.kafka import broker
from market_dev.stack.kafka.apache import ApacheKafka
from market_dev.stack.servers.base import Server, StartError, tail
from market_dev.stack.servers.mail import Mail
from market_dev.stack.servers.mongodb import Mongodb
from market_dev.stack.servers.postgres import Postgres
from market_dev.stack.servers.redis import Redis
from market_dev.stack.servers.service import Service
from market_dev.stack.supervisor import Supervised, exit_of
from market_dev.stack.topology import LAST_PORT_BASE, TABLE, Options, Row, config_directory, environment, ports

_PATIENCE_SECONDS = 120.0


class Stack:
    """Owns the data directory and every process. Use it from the main thread's event loop."""

    def __init__(
        self,
        options: Options,
        *,
        say: Callable[[str], None] = lambda _: None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """`say` gets a line for the user now and then; `changed` is called when a process was started or is ready."""
        self.options = options
        self.directory = Directory(options.data)
        self.ports = ports(options.port_base)
        self.parts: dict[str, Supervised] = {}
        self.kafka_kind = ""
        self._say = say
        self._changed = changed
        self._pool = ThreadPoolExecutor(16, "stack")
        self._migrations: subprocess.Popen[bytes] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Stack:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    # What it is.

    @property
    def pids(self) -> dict[str, int]:
        """The process ids of what runs now, by name."""
        return {name: part.pid for name, part in self.parts.items() if part.pid is not None}

    @property
    def urls(self) -> dict[str, Any]:
        at = "127.0.0.1"
        password = self.directory.password()
        p = self.ports
        return {
            **{name: f"http://{at}:{p[name]}" for name in ("graphql", "products", "orders")},
            "inventory": f"{at}:{p['inventory']}",
            "mail": f"http://{at}:{p['mail']}",
            "smtp": f"smtp://{at}:{p['smtp']}",
            "kafka": f"{at}:{p['kafka']}",
            **{
                f"postgres_{name}": f"postgresql://{name}:{password}@{at}:{p['postgres']}/{name}"
                for name in ("products", "inventory")
            },
            "mongodb": f"mongodb://{at}:{p['mongodb']}/?directConnection=true",
            "redis": f"redis://{at}:{p['redis']}/0",
            "admin": {row.name: f"http://{at}:{p[f'{row.name} admin']}" for row in TABLE if row.service},
        }

    def waiting(self) -> list[str]:
        """The names of what is not ready."""
        return [row.name for row in TABLE if row.name not in self.parts or not self.parts[row.name].ready.is_set()]

    # Start.

    async def start(self) -> None:
        """Returns when everything is ready. Raises StartError; call `stop` in any case."""
        if not 1 <= self.options.port_base <= LAST_PORT_BASE:
            raise StartError(f"--port-base must be 1 to {LAST_PORT_BASE}")
        self.directory.open()
        await self._in_thread(self._preflight)
        self._write_configurations()
        for row in TABLE:
            self.parts[row.name] = Supervised(
                self._server(row), self._pool, changed=self._part_changed, died=self._part_died
            )
        await self._in_thread(self._check_versions)
        postgres = self.parts["postgres"].server
        if isinstance(postgres, Postgres) and postgres.moved:
            self._say(
                f"PostgreSQL cannot run as root, and another user cannot reach this place: it is in {postgres.moved}"
            )
        # All at once: a service waits by itself for its store and its schema, and is imported meanwhile.
        for row in TABLE:
            self._begin(row)
        migrating = asyncio.create_task(self._migrate())
        try:
            await self._first_failure(self._all_ready(migrating), [migrating])
        finally:
            migrating.cancel()

    def _preflight(self) -> None:
        """What must hold before the first process is started."""
        if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
            raise StartError(
                f"the servers' wheels fit x86-64 Linux, and this is {platform.machine()} {platform.system()}"
            )
        for name in self.directory.end_leftovers():
            self._say(f"ended what an earlier `market up` left running: {name}")
        busy = [f"{port} ({name})" for name, port in self.ports.items() if not spawn.is_free(port)]
        if busy:
            raise StartError(
                f"already in use: port{'s' * (len(busy) > 1)} {', '.join(busy)}; choose others with --port-base"
            )
        kept = "kafka" in self.directory.versions()
        self.kafka_kind, reason = broker.choose(self.options.kafka, kept=kept)  # type: ignore[arg-type]
        if reason:
            self._say(
                f"Kafka is the broker built into librdkafka, in memory: events not yet mailed are lost when it stops ({reason})"
            )

    def _check_versions(self) -> None:
        for part in self.parts.values():
            version = part.server.version()
            if version is not None:
                self.directory.check_version(part.name, version)

    def _server(self, row: Row) -> Server:
        directory, logs, p = self.directory.path / row.name, self.directory.logs, self.ports
        if row.service:
            run = self.directory.path / "run"
            run.mkdir(exist_ok=True)
            own = {name: p[name] for name in row.ports}
            return Service(
                row.name, own, run, logs, config=self._configuration(row.name), env=self._environment(row.name)
            )
        if row.name == "postgres":
            written = self.directory.versions().get("postgres", "").split(" ")[0]
            return Postgres(p["postgres"], directory, logs, self.directory.password(), wheel=written or None)
        if row.name == "redis":
            return Redis(p["redis"], directory, logs)
        if row.name == "mongodb":
            return Mongodb(p["mongodb"], directory, logs)
        if row.name == "mail":
            return Mail(p["mail"], p["smtp"], directory, logs, testing=self.options.mail_testing)
        advertised = self.options.kafka_advertised
        if self.kafka_kind == "apache":
            return ApacheKafka(p["kafka"], p["kafka controller"], directory, logs, advertised=advertised)
        return broker.EmbeddedKafka(p["kafka"], directory, logs, advertised=advertised)

    def _environment(self, service: str) -> dict[str, str]:
        return environment(
            service,
            self.ports,
            password=self.directory.password(),
            kafka=self.kafka_kind,
            log_format=self.options.log_format,
            routes=self.options.routes,
        )

    def _configuration(self, service: str) -> Path:
        if service in self.options.overrides:
            return self.directory.path / "config" / f"{service}.yaml"
        return config_directory() / f"{service}.yaml"

    def _write_configurations(self) -> None:
        for service, over in self.options.overrides.items():
            tree = yaml.safe_load((config_directory() / f"{service}.yaml").read_text("utf-8"))
            path = self._configuration(service)
            path.parent.mkdir(exist_ok=True)
            path.write_text(yaml.safe_dump(_laid_over(tree, over), allow_unicode=True), "utf-8")

    def _begin(self, row: Row) -> None:
        self._tasks.append(self.parts[row.name].start())

    async def _migrate(self) -> None:
        """Brings every schema up to date; each service sees it when its own is."""
        jobs = {
            row.name: {"config": str(self._configuration(row.name)), "env": self._environment(row.name)}
            for row in TABLE
            if row.migrates
        }
        log = self.directory.logs / "schema.log"
        process = self._start_migrations(log)
        assert process.stdin is not None
        process.stdin.write(json.dumps(jobs).encode())
        process.stdin.close()
        await exit_of(process)
        if process.returncode:
            raise StartError(f"the schema could not be brought up to date; {log} ends with:\n{tail(log)}")

    def _start_migrations(self, log: Path) -> subprocess.Popen[bytes]:
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as errors:
            self._migrations = subprocess.Popen(
                [sys.executable, "-m", "market_dev.stack.schema"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
                preexec_fn=spawn.bound_to_parent(),
            )
        return self._migrations

    async def _all_ready(self, migrating: asyncio.Task[None]) -> None:
        # With what is migrated last: the topics.
        await asyncio.gather(asyncio.shield(migrating), *(part.ready.wait() for part in self.parts.values()))

    async def _first_failure(self, work: Any, others: list[asyncio.Task[None]]) -> None:
        """Waits for `work`; raises at once what a process or one of `others` fails with. Gives up after two minutes."""
        main = asyncio.ensure_future(work)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        try:
            while not main.done():
                watched = {main, *(t for t in (*self._tasks, *others) if not t.done())}
                await asyncio.wait(watched, timeout=0.2, return_when=asyncio.FIRST_COMPLETED)
                for task in (*self._tasks, *others):
                    if task.done() and not task.cancelled() and (error := task.exception()):
                        raise error
                if time.monotonic() > deadline:
                    raise StartError("not ready after two minutes: " + await self._in_thread(self._reasons))
            main.result()
        finally:
            main.cancel()

    def _reasons(self) -> str:
        def reason(name: str) -> str:
            server = self.parts[name].server
            return f"{name} ({server.missing() if isinstance(server, Service) else f'see {server.log}'})"

        return ", ".join(reason(name) for name in self.waiting())

    async def ready(self, names: Iterable[str] | None = None, seconds: float = 60) -> None:
        """Waits until these parts (default: all) are ready. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            for name in names or list(self.parts):
                await self.parts[name].ready.wait()

    # While it runs.

    def kill(self, name: str) -> None:
        """kill -9. The supervisor starts it again."""
        self.parts[name].ready.clear()
        self.parts[name].send(signal.SIGKILL)

    def terminate(self, name: str) -> None:
        """SIGTERM, or what the server takes for it. The supervisor starts it again."""
        self.parts[name].ready.clear()
        self.parts[name].send(self.parts[name].server.stop_signal)

    def pause(self, name: str) -> None:
        """SIGSTOP to it and its children."""
        self.parts[name].send_tree(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        self.parts[name].send_tree(signal.SIGCONT)

    def _part_changed(self) -> None:
        with suppress(OSError):  # A full disk stops nothing; the kernel ends the children all the same.
            self.directory.record(self.pids)
        self._changed()

    def _part_died(self, name: str, status: int, pause: float) -> None:
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        when = f"in {pause:.1f} s" if pause else "now"
        self._say(f"{name} {how} and is started again {when}, on the same port; its log: {self.parts[name].server.log}")

    async def failed(self) -> None:
        """Waits until a part has failed for good, and raises its StartError."""
        # Not gather: who gives up waiting here must not cancel the parts.
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()

    # Stop.

    async def stop(self) -> None:
        """Stops everything, each part only after those that use it."""
        if self._migrations is not None and self._migrations.poll() is None:
            self._migrations.kill()
            self._migrations.wait()
        stopped = {name: asyncio.Event() for name in self.parts}

        async def stop(name: str) -> None:
            for row in TABLE:
                if name in row.uses and row.name in stopped:
                    await stopped[row.name].wait()
            await self.parts[name].stop()
            stopped[name].set()

        await asyncio.gather(*(stop(name) for name in self.parts))
        if self.parts:
            self.directory.record({})
        self.directory.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def kill_all(self) -> None:
        """Ends everything by force."""
        for part in self.parts.values():
            part.kill_now()

    async def _in_thread(self, function: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function)


def _laid_over(tree: Any, over: Any) -> Any:
    if isinstance(tree, dict) and isinstance(over, dict):
        return {**tree, **{key: _laid_over(tree.get(key), value) for key, value in over.items()}}
    return over
