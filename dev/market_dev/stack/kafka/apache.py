"""Apache Kafka with one node: jars downloaded by Maven and verified by hash, and a class archive that halves the
startup time."""

from __future__ import annotations

import hashlib
import re
import shutil
import socket
import struct
import subprocess
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from importlib.resources import files
from pathlib import Path

from market_dev.stack import cache, java, processes
from market_dev.stack.servers.base import Server, StartError

VERSION = "4.4.0"
_PACKAGE = Path(str(files("market_dev.stack.kafka")))
# Keep the heap close to what is in use. By default it grows to its limit and stays there.
_JVM = [
    "-Xmx128m",
    # A small young generation: it is filled whatever its size is.
    "-Xms32m",
    "-Xmn12m",
    "-XX:MinHeapFreeRatio=10",
    "-XX:MaxHeapFreeRatio=30",
    "-Xss512k",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-XX:+ExitOnOutOfMemoryError",
]
_LOGGING = [
    "-Dlog4j2.loggerContextFactory=org.apache.logging.log4j.simple.SimpleLoggerContextFactory",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
]


def why_unavailable() -> str | None:
    """Return what this machine lacks to run Apache Kafka, or None if it can."""
    if reason := java.why_unusable("Apache Kafka"):
        return reason
    if shutil.which("mvn") is None and not is_downloaded():
        return "Maven is not installed (it downloads Apache Kafka)"
    return None


def _hashes() -> dict[str, str]:
    lines = (_PACKAGE / "libs.sha256").read_text().splitlines()
    return {name: digest for digest, name in (line.split() for line in lines)}


def cache_directory() -> Path:
    """Return the directory of jars and class archive, shared by all stacks of this user; one per set of jars."""
    digest = hashlib.sha256((_PACKAGE / "pom.xml").read_bytes() + (_PACKAGE / "libs.sha256").read_bytes()).hexdigest()[
        :12
    ]
    return cache.cache_directory() / f"kafka-{VERSION}-{digest}"


class ApacheKafka(Server):
    kind = "apache"

    def __init__(
        self,
        port: int,
        controller_port: int,
        directory: Path,
        logs: Path,
        *,
        advertised: int | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__("kafka", port, directory, logs)
        self.controller_port = controller_port
        self._advertised = advertised or port
        self._settings = dict(settings or {})
        # The class archive that a broker writes when it stops, and its unfinished directory in the cache.
        self._new_archive: Path | None = None
        self._archiving = ExitStack()

    @property
    def ports(self) -> dict[str, int]:
        return {"kafka": self.port, "kafka controller": self.controller_port}

    def version(self) -> str:
        return f"apache-kafka {VERSION}"

    def prepare(self) -> None:
        download()
        template = _format()
        data = self.directory / "data"
        if not (data / "meta.properties").exists():
            # A formatted directory is two small files: copying it with new ids saves starting Java, about a second.
            shutil.rmtree(data, ignore_errors=True)
            new = self.directory / "data.new"
            shutil.rmtree(new, ignore_errors=True)
            shutil.copytree(template, new)
            meta = (new / "meta.properties").read_text()
            for key in ("cluster.id", "directory.id"):
                meta = re.sub(rf"(?m)^{key}=.*$", f"{key}={_new_id()}", meta)
            (new / "meta.properties").write_text(meta)
            new.rename(data)

    def before_start(self) -> None:
        text = (_PACKAGE / "server.properties").read_text()
        values = {
            "PORT": self.port,
            "CPORT": self.controller_port,
            "ADVERTISED": self._advertised,
            "DATA": self.directory / "data",
        }
        for name, value in values.items():
            text = text.replace(f"@{name}@", str(value))
        text += "".join(f"{key}={value}\n" for key, value in self._settings.items())
        (self.directory / "server.properties").write_text(text)
        self._keep_archive()

    def command(self) -> processes.Command:
        archive = cache_directory() / "classes.jsa"
        if archive.exists():
            sharing = [f"-XX:SharedArchiveFile={archive}", "-Xlog:cds=off", "-Xlog:cds+dynamic=off"]
        else:
            # Written when this broker stops gracefully, and used from the next start on.
            sharing = []
            # A cache that cannot be written gets no archive.
            with suppress(OSError):
                self._new_archive = self._archiving.enter_context(cache.unfinished_directory()) / archive.name
                sharing = [f"-XX:ArchiveClassesAtExit={self._new_archive}", "-Xlog:cds=off", "-Xlog:cds+dynamic=off"]
        return processes.Command(
            [
                java.executable(),
                *_JVM,
                *sharing,
                *_LOGGING,
                "-cp",
                _classpath(),
                "kafka.Kafka",
                self.directory / "server.properties",
            ]
        )

    def after_stop(self) -> None:
        self._keep_archive()

    def _keep_archive(self) -> None:
        if self._new_archive is not None:
            if self._new_archive.exists():
                self._new_archive.rename(cache_directory() / "classes.jsa")
            self._new_archive = None
            self._archiving.close()

    def probe(self) -> bool:
        return has_broker(self.port)


def has_broker(port: int) -> bool:
    """Return whether a Kafka broker listens on the port and is a member of its cluster.

    By one Metadata request, version 1, for no topics, because importing confluent_kafka would take 0.1 s of CPU time
    and memory of `market up`. https://kafka.apache.org/protocol.html#The_Messages_Metadata
    """
    # The API's key and version, the correlation id, no client id, no topics.
    request = struct.pack(">hhihi", 3, 1, 1, -1, 0)
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as sock:
            sock.settimeout(1)
            sock.sendall(struct.pack(">i", len(request)) + request)
            with sock.makefile("rb") as file:
                # The length of the response, its correlation id, the number of brokers.
                start = file.read(12)
    except OSError:
        return False
    return len(start) == 12 and int.from_bytes(start[8:], "big", signed=True) > 0


def is_downloaded() -> bool:
    """Return whether the jars are in the cache."""
    return (cache_directory() / "libs").exists()


def download() -> None:
    """Download the jars into the cache if they are missing, and verify their hashes. Raises StartError."""
    libs = cache_directory() / "libs"
    if libs.exists():
        _verify(libs)
        return
    with java.downloaded("Apache Kafka", _PACKAGE / "pom.xml", libs) as new:
        _verify(new)
        cache.publish(new, libs)


def _verify(libs: Path) -> None:
    expected = _hashes()
    found = {path.name: _digest(path) for path in sorted(libs.glob("*.jar"))}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        raise StartError(
            f"unexpected hashes of Apache Kafka's jars in {libs}: {', '.join(wrong[:5])}; "
            "remove that directory and try again"
        )


def _digest(path: Path) -> str:
    # In pieces: the largest jar would add its size to the memory of `market up`.
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _classpath() -> str:
    libs = cache_directory() / "libs"
    return ":".join(str(libs / name) for name in sorted(_hashes()))


def _new_id() -> str:
    return urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A", 1)


def _format() -> Path:
    """Return a formatted, empty data directory to copy from."""
    template = cache_directory() / "formatted"
    if template.exists():
        return template
    with cache.unfinished_directory() as new:
        properties = new / "server.properties"
        text = (_PACKAGE / "server.properties").read_text()
        for name, value in {"PORT": 1, "CPORT": 2, "ADVERTISED": 1, "DATA": new / "data"}.items():
            text = text.replace(f"@{name}@", str(value))
        properties.write_text(text)
        done = subprocess.run(
            [
                java.executable(),
                *_JVM,
                *_LOGGING,
                "-cp",
                _classpath(),
                "kafka.tools.StorageTool",
                "format",
                "--config",
                str(properties),
                f"--cluster-id={_new_id()}",
            ],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            raise StartError(
                "Apache Kafka could not format its data directory: "
                + (done.stderr.strip().splitlines() or ["no error message"])[-1]
            )
        cache.publish(new / "data", template)
    return template
