"""Several processes of one service on one port, where the configuration asks for `workers`.

The parent serves nothing but the admin port: it starts the workers, starts again what dies, and
answers for all of them. The kernel spreads connections among the workers (SO_REUSEPORT).
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import h11
import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from market.kit import config as kit_config
from market.kit.process import logs
from market.kit.process.health import Admin, Health
from market.kit.resilience import backoff

log = logs.get_logger("workers")
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Workers:
    """Owns the worker processes and the folder with their admin sockets and figures."""

    def __init__(self, name: str, config: kit_config.Base) -> None:
        self._name = name
        self._config = config
        self._folder = Path(tempfile.mkdtemp(prefix="market-"))
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()

    def socket(self, number: int) -> str:
        return str(self._folder / f"{number}.sock")

    async def run(self) -> int:
        """Until SIGTERM or SIGINT; then every worker drains. Answers the exit status."""
        from market.kit.http.server import HttpServer

        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._stopping.set)
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=str(self._folder))  # type: ignore[no-untyped-call]
        health = Health()
        health.started = True
        for number in range(self._config.workers):
            health.add_check(f"worker {number}", lambda number=number: self._check(number))  # type: ignore[misc]
        admin = HttpServer(_Forwarding(health, registry, self), self._config.admin.host, self._config.admin.port)
        await admin.start()
        try:
            await asyncio.gather(*(self._keep(number) for number in range(self._config.workers)))
        finally:
            await admin.stop(1)
            shutil.rmtree(self._folder, ignore_errors=True)
        return 0

    async def _keep(self, number: int) -> None:
        deaths = 0
        while not self._stopping.is_set():
            started = time.monotonic()
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                f"market.{self._name}",
                "--worker",
                self.socket(number),
                env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(self._folder)},
                preexec_fn=_die_with_parent,
            )
            self._running[number] = process
            ended = asyncio.create_task(process.wait())
            stopped = asyncio.create_task(self._stopping.wait())
            await asyncio.wait({ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if not ended.done():
                process.terminate()
                shutdown = self._config.shutdown
                try:
                    async with asyncio.timeout(shutdown.drain_seconds + shutdown.grace_seconds + 5):
                        await asyncio.shield(ended)
                except TimeoutError:
                    process.kill()
            status = await ended
            mark_process_dead(process.pid, path=str(self._folder))  # type: ignore[no-untyped-call]
            if self._stopping.is_set():
                return
            deaths = deaths + 1 if time.monotonic() - started < 10 else 0
            log.error("worker died", worker=number, status=status)
            await asyncio.sleep(backoff(deaths, base=0.1, max_seconds=5) if deaths else 0)

    async def _check(self, number: int) -> None:
        """Raises unless the worker is ready."""
        reader, writer = await asyncio.open_unix_connection(self.socket(number))
        try:
            writer.write(b"GET /readyz HTTP/1.1\r\nhost: worker\r\nconnection: close\r\n\r\n")
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        finally:
            writer.close()
        if b" 200 " not in head.split(b"\r\n", 1)[0]:
            missing = msgspec.json.decode(body).get("missing", {}) if body else {}
            raise RuntimeError("; ".join(f"{k}: {v}" for k, v in missing.items()) or "not ready")


class _Forwarding(Admin):
    """What a service added to its admin port is answered by the first worker."""

    def __init__(self, health: Health, registry: CollectorRegistry, workers: Workers) -> None:
        super().__init__(health, registry)
        self._workers = workers

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] not in ("/healthz", "/readyz", "/metrics"):
            await self._forward(scope, send)
        else:
            await super().__call__(scope, receive, send)

    async def _forward(self, scope: Any, send: Any) -> None:
        target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        reader, writer = await asyncio.open_unix_connection(self._workers.socket(0))
        http = h11.Connection(h11.CLIENT)
        try:
            request = h11.Request(
                method=scope["method"], target=target, headers=[("host", "worker"), ("content-length", "0")]
            )
            writer.write((http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b""))
            while True:
                event = http.next_event()
                if event is h11.NEED_DATA:
                    http.receive_data(await reader.read(65536))
                elif isinstance(event, h11.Response):
                    headers = [(k, v) for k, v in event.headers if k not in (b"transfer-encoding", b"date")]
                    await send({"type": "http.response.start", "status": event.status_code, "headers": headers})
                elif isinstance(event, h11.Data):
                    await send({"type": "http.response.body", "body": bytes(event.data), "more_body": True})
                else:
                    await send({"type": "http.response.body", "body": b""})
                    return
        finally:
            writer.close()
