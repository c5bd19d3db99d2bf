"""All processes of the topology together: started in parallel, kept running, stopped in order.

    async with Stack(Options(data, port_base=8080)) as stack:
        await stack.start()
        stack.kill("orders")          # it is restarted on the same port
        await stack.wait_ready(["orders"])

The public interface of the stack, for commands, chaos test, benchmarks and tests, is this class, and from the modules
beside this one:

    topology         Options, ROWS, SERVICES, ports(), environment(), config_directory()
    processes        Command, spawn(), bound_to_parent(), tree(), free_ports(), free_port_base(), is_free(),
                     is_listening()
    servers          one class per server (`servers.postgres.Postgres`, ...); `servers.base`: StartError, tail()
    kafka.broker     ApacheKafka, EmbeddedKafka, choose()
    keycloak.server  Keycloak
    sign_in          SignIn, PEOPLE, read()
    data_directory   DataDirectory, write_json()
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

from market_dev.stack import cache, processes, sign_in
from market_dev.stack.configurations import Configurations
from market_dev.stack.data_directory import DataDirectory
from market_dev.stack.kafka import broker
from market_dev.stack.kafka.apache import ApacheKafka
from market_dev.stack.keycloak import server as keycloak
from market_dev.stack.servers.base import Server, StartError, tail
from market_dev.stack.servers.issuer import issuer
from market_dev.stack.servers.mail import Mail
from market_dev.stack.servers.mongodb import Mongodb
from market_dev.stack.servers.postgres import Postgres
from market_dev.stack.servers.redis import Redis
from market_dev.stack.servers.service import Service
from market_dev.stack.sign_in import SignIn
from market_dev.stack.supervisor import Supervisor, wait_for_exit
from market_dev.stack.topology import LAST_PORT_BASE, ROWS, Options, Row, environment, ports

# By issuer; on a busy machine, Keycloak takes minutes to import its realm.
_START_TIMEOUT_SECONDS = {None: 120.0, "local": 120.0, "keycloak": 360.0}


class Stack:
    """Owns the data directory and every process. Use it from the main thread's event loop."""

    def __init__(
        self,
        options: Options,
        *,
        notify: Callable[[str], None] = lambda _: None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """`notify` gets messages for the user, one line each, from any thread. `on_change` is called when a process
        was started or is ready."""
        self.options = options
        self.directory = DataDirectory(options.data)
        self.rows = {
            name: row
            for name, row in ROWS.items()
            if (options.services or not row.is_service) and (options.sign_in is not None or not row.for_sign_in)
        }
        self.ports = ports(options.port_base)
        # How to sign in, once the stack was started with an issuer.
        self.sign_in: SignIn | None = None
        self._configurations = Configurations(self.directory.path, options.overrides, None)
        # Empty until the preflight checks have passed.
        self.supervisors: dict[str, Supervisor] = {}
        self.kafka_kind = ""
        self._notify = notify
        self._on_change = on_change
        self._pool = ThreadPoolExecutor(16, "stack")
        self._migrations: subprocess.Popen[bytes] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Stack:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    # State.

    @property
    def pids(self) -> dict[str, int]:
        """The ids of the running processes, by name."""
        return {name: s.pid for name, s in self.supervisors.items() if s.pid is not None}

    @property
    def urls(self) -> dict[str, Any]:
        """The address of everything, by name; those of the admin ports below `admin`, by service."""
        host = "127.0.0.1"
        password = self.directory.password()
        p = self.ports
        return {
            **{
                name: f"http://{host}:{p[name]}"
                for name in ("storefront", "graphql", "products", "orders", "notifications")
            },
            "inventory": f"{host}:{p['inventory']}",
            "mail": f"http://{host}:{p['mail']}",
            "smtp": f"smtp://{host}:{p['smtp']}",
            "kafka": f"{host}:{p['kafka']}",
            **{
                f"postgres_{name}": f"postgresql://{name}:{password}@{host}:{p['postgres']}/{name}"
                for name in ("products", "inventory")
            },
            "mongodb": f"mongodb://{host}:{p['mongodb']}/?directConnection=true",
            "redis": f"redis://{host}:{p['redis']}/0",
            **({"issuer": self.sign_in.issuer} if self.sign_in is not None else {}),
            "admin": {row.name: f"http://{host}:{p[f'{row.name} admin']}" for row in ROWS.values() if row.is_service},
        }

    def server(self, name: str) -> Server:
        """Return the server of that name. Raises KeyError before `start`."""
        return self.supervisors[name].server

    def environment(self, service: str) -> dict[str, str]:
        """Return the environment variables that the service's configuration file refers to, in this stack."""
        env = environment(
            service,
            self.ports,
            password=self.directory.password(),
            cookie_secrets_file=self.directory.cookie_secrets_file(),
            kafka=self.kafka_kind,
            log_format=self.options.log_format,
            routes=self.options.routes,
        )
        return env | (self.sign_in.environment(service) if self.sign_in is not None else {})

    def not_ready(self) -> list[str]:
        """Return the names of what is not ready."""
        return [name for name in self.rows if name not in self.supervisors or not self.supervisors[name].ready.is_set()]

    # Start.

    async def start(self) -> None:
        """Return when everything is ready. Raises StartError; call `stop` in any case."""
        if not 1 <= self.options.port_base <= LAST_PORT_BASE:
            raise StartError(f"--port-base must be between 1 and {LAST_PORT_BASE}, got {self.options.port_base}")
        self.directory.open()
        await self._in_thread(self._preflight)
        self._configure()
        for name, row in self.rows.items():
            self.supervisors[name] = Supervisor(
                self._server(row), self._pool, on_change=self._process_changed, on_exit=self._process_exited
            )
        await self._in_thread(self._check_versions)
        postgres = self.server("postgres")
        if isinstance(postgres, Postgres) and postgres.relocated:
            self._notify(
                f"PostgreSQL cannot run as root, and other users have no access to {self.directory.path}: "
                f"its data is in {postgres.relocated}"
            )
        # All at once: each service waits for its store and its schema, and is imported in the meantime.
        self._tasks = [supervisor.start() for supervisor in self.supervisors.values()]
        migrating = asyncio.create_task(self._migrate())
        try:
            await self._first_failure(self._all_ready(migrating), [migrating])
        finally:
            migrating.cancel()

    def _preflight(self) -> None:
        """Check what must hold before the first process is started."""
        if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
            raise StartError(f"the servers need x86-64 Linux, and this is {platform.machine()} {platform.system()}")
        for name in self.directory.kill_leftovers():
            self._notify(f"killed a process that an earlier `market up` left running: {name}")
        cache.remove_unfinished()
        used = {name: self.ports[name] for row in self.rows.values() for name in row.ports}
        busy = [f"{port} ({name})" for name, port in used.items() if not processes.is_free(port)]
        if busy:
            taken = f"port{'s' * (len(busy) > 1)} {', '.join(busy)}"
            hint = 'choose others with --port-base N (make run ARGS="--port-base N")'
            raise StartError(f"already in use: {taken}; {hint}")
        has_data = "kafka" in self.directory.versions()
        self.kafka_kind, reason = broker.choose(self.options.kafka, has_data=has_data)  # type: ignore[arg-type]
        if reason:
            self._notify(
                f"Kafka is the embedded broker, in memory: events not yet mailed are lost when it stops ({reason})"
            )

        if self.options.sign_in == "keycloak":
            keycloak.prepare_distribution()

    def _configure(self) -> None:
        """Write the configuration files of the services, and tell the commands how to sign in, if anybody has to."""
        directory, kind = self.directory.path, self.options.sign_in
        sign_in.remove(directory)
        if kind is not None:
            options = self.options
            self.sign_in = SignIn.of_stack(
                kind,
                directory,
                self.ports,
                options.port_base,
                people=options.people,
                token_seconds=options.token_seconds,
            )
            self.sign_in.write(directory)
        self._configurations = Configurations(directory, self.options.overrides, self.sign_in)
        self._configurations.write()

    def _check_versions(self) -> None:
        for name, supervisor in self.supervisors.items():
            version = supervisor.server.version()
            if version is not None:
                self.directory.check_version(name, version)

    def _server(self, row: Row) -> Server:
        directory, logs, p = self.directory.path / row.name, self.directory.logs, self.ports
        if row.is_service:
            run = self.directory.path / "run"
            run.mkdir(exist_ok=True)
            own_ports = {name: p[name] for name in row.ports}
            config, env = self.configuration(row.name), self.environment(row.name)
            return Service(row.name, own_ports, run, logs, config=config, env=env)
        if row.name == "postgres":
            # The package that wrote the data, if there is data.
            package = self.directory.versions().get("postgres", "").split(" ")[0] or None
            settings = self.options.postgres_settings
            password = self.directory.password()
            return Postgres(p["postgres"], directory, logs, password, package=package, settings=settings)
        if row.name == "redis":
            return Redis(p["redis"], directory, logs)
        if row.name == "mongodb":
            return Mongodb(p["mongodb"], directory, logs)
        if row.name == "mail":
            return Mail(p["mail"], p["smtp"], directory, logs, testing=self.options.mail_testing)
        if row.name == "issuer":
            assert self.sign_in is not None
            return issuer(self.sign_in, p, directory, logs)
        advertised = self.options.kafka_advertised
        if self.kafka_kind == "apache":
            return ApacheKafka(p["kafka"], p["kafka controller"], directory, logs, advertised=advertised)
        return broker.EmbeddedKafka(p["kafka"], directory, logs, advertised=advertised)

    def configuration(self, service: str) -> Path:
        """Return the service's configuration file in this stack."""
        return self._configurations.path(service)

    async def _migrate(self) -> None:
        """Apply all migrations; each service waits for its own."""
        jobs = {
            name: {"config": str(self.configuration(name)), "env": self.environment(name)}
            for name, row in self.rows.items()
            if row.migrates
        }
        if not jobs:
            return
        log = self.directory.logs / "migrate.log"
        process = self._start_migrations(log)
        assert process.stdin is not None
        process.stdin.write(json.dumps(jobs).encode())
        process.stdin.close()
        await wait_for_exit(process)
        if process.returncode:
            raise StartError(f"the migrations failed; {log} ends with:\n{tail(log)}")

    def _start_migrations(self, log: Path) -> subprocess.Popen[bytes]:
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as errors:
            self._migrations = subprocess.Popen(
                # -P: import nothing from the current directory, which may be any.
                [sys.executable, "-P", "-m", "market_dev.stack.migrate"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
                preexec_fn=processes.bound_to_parent(),
            )
        return self._migrations

    async def _all_ready(self, migrating: asyncio.Task[None]) -> None:
        # The migrations too: they create the topics last, when the services may be ready already.
        await asyncio.gather(asyncio.shield(migrating), *(s.ready.wait() for s in self.supervisors.values()))

    async def _first_failure(self, work: Any, others: list[asyncio.Task[None]]) -> None:
        """Wait for `work`, and raise at once what a supervisor or one of `others` fails with.

        Raises StartError if that takes minutes.
        """
        main = asyncio.ensure_future(work)
        timeout = _START_TIMEOUT_SECONDS[self.options.sign_in]
        deadline = time.monotonic() + timeout
        try:
            while not main.done():
                watched = {main, *(t for t in (*self._tasks, *others) if not t.done())}
                await asyncio.wait(watched, timeout=0.2, return_when=asyncio.FIRST_COMPLETED)
                for task in (*self._tasks, *others):
                    if task.done() and not task.cancelled() and (error := task.exception()):
                        raise error
                if time.monotonic() > deadline:
                    reasons = await self._in_thread(self._reasons)
                    raise StartError(f"not ready after {timeout:.0f} s: {reasons}")
            main.result()
        finally:
            main.cancel()

    def _reasons(self) -> str:
        def reason(name: str) -> str:
            server = self.server(name)
            return f"{name} ({server.unready_reasons() if isinstance(server, Service) else f'see {server.log}'})"

        return ", ".join(reason(name) for name in self.not_ready())

    async def wait_ready(self, names: Iterable[str] | None = None, seconds: float = 60) -> None:
        """Wait until the named processes (default: all) are ready. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            for name in names or list(self.supervisors):
                await self.supervisors[name].ready.wait()

    # Faults, while it runs.

    def kill(self, name: str, *, restart: bool = True) -> None:
        """Send SIGKILL. The supervisor restarts the process; with `restart=False` only after `restart(name)`."""
        if not restart:
            self.supervisors[name].hold()
        self.supervisors[name].ready.clear()
        self.supervisors[name].send_signal(signal.SIGKILL)

    def restart(self, name: str) -> None:
        """Let the supervisor restart what was killed with `restart=False`."""
        self.supervisors[name].release()

    def terminate(self, name: str) -> None:
        """Send SIGTERM, or the server's own signal for a graceful stop. The supervisor restarts the process."""
        self.supervisors[name].ready.clear()
        self.supervisors[name].send_signal(self.server(name).stop_signal)

    def pause(self, name: str) -> None:
        """Send SIGSTOP to the process and its descendants."""
        self.supervisors[name].send_signal_to_tree(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """Send SIGCONT to the process and its descendants."""
        self.supervisors[name].send_signal_to_tree(signal.SIGCONT)

    def _process_changed(self) -> None:
        with suppress(OSError):  # A full disk must not stop the stack; the kernel kills the children in any case.
            self.directory.record(self.pids)
        self._on_change()

    def _process_exited(self, name: str, status: int, pause: float) -> None:
        how = f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"
        when = f"restarting in {pause:.1f} s" if pause else "restarting now"
        self._notify(f"{name} {how}, {when} on the same port; log: {self.server(name).log}")

    async def wait_failed(self) -> None:
        """Wait until a process cannot be restarted, and raise its StartError."""
        # Not gather: cancelling this wait must not cancel the supervisors.
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()

    # Stop.

    async def stop(self) -> None:
        """Stop everything, each process only after those that depend on it."""
        if self._migrations is not None and self._migrations.poll() is None:
            self._migrations.kill()
            self._migrations.wait()
        stopped = {name: asyncio.Event() for name in self.supervisors}

        async def stop(name: str) -> None:
            for row in self.rows.values():
                if name in row.depends_on and row.name in stopped:
                    await stopped[row.name].wait()
            await self.supervisors[name].stop()
            stopped[name].set()

        await asyncio.gather(*(stop(name) for name in self.supervisors))
        if self.supervisors:
            self.directory.record({})
            sign_in.remove(self.directory.path)
        self.directory.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def kill_all(self) -> None:
        """Kill every process for good."""
        for supervisor in self.supervisors.values():
            supervisor.kill()

    async def _in_thread(self, function: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function)
