"""Keycloak with one realm: an archive downloaded by Maven and verified by hash, prepared once for all stacks."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import zipfile
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from market_dev.stack import cache, java, processes
from market_dev.stack.files import write_text
from market_dev.stack.servers.base import Server, StartError
from market_dev.stack.servers.mail import http_ok
from market_dev.stack.sign_in import CALLERS, SHOP, TOOLS, SignIn

VERSION = "26.7.3"
_SHA256 = "27a6535553c3cdcd083872ba40629efafb3475e3b758e0c6f691395561dd0f1f"
_PACKAGE = Path(str(files("market_dev.stack.keycloak")))
REALM = _PACKAGE / "realm.json"
# H2 in a file; the health endpoint tells when the realm has been imported.
_BUILD_OPTIONS = ("--db=dev-file", "--health-enabled=true")
_JVM = [
    "-Xms64m",
    "-Xmx256m",
    "-XX:MaxMetaspaceSize=256m",
    "-XX:+UseSerialGC",
    # Nothing here runs long enough for the second compiler.
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-XX:+ExitOnOutOfMemoryError",
    "-Dfile.encoding=UTF-8",
    "-Duser.language=en",
]
# What bin/kc.sh passes. Java is started without it, so that signals reach Keycloak and not a shell.
_RUNTIME = [
    *(f"--add-opens=java.base/java.{name}=ALL-UNNAMED" for name in ("util", "util.concurrent", "security", "lang")),
    "--enable-native-access=ALL-UNNAMED",
    "-Djava.util.concurrent.ForkJoinPool.common.threadFactory="
    "io.quarkus.bootstrap.forkjoin.QuarkusForkJoinWorkerThreadFactory",
    "-Djava.util.logging.manager=org.jboss.logmanager.LogManager",
    "-Dpicocli.disable.closures=true",
]
_MAIN = "io.quarkus.bootstrap.runner.QuarkusEntryPoint"


class Keycloak(Server):
    """The realm `market` in realm.json. Accounts and keys are kept until the realm or the secrets change.

    realms: the realms in place of that one, as JSON, by name.
    """

    def __init__(
        self,
        ports: Mapping[str, int],
        directory: Path,
        logs: Path,
        sign_in: SignIn,
        *,
        realms: Mapping[str, str] | None = None,
    ) -> None:
        """`ports`: those of the stack, by name."""
        super().__init__("issuer", ports["issuer"], directory, logs)
        self.management_port = ports["issuer management"]
        self._sign_in = sign_in
        self._web_ports = {name: ports[name] for name in ("graphql", "storefront")}
        self._realms = realms or {"market": REALM.read_text("utf-8")}

    @property
    def ports(self) -> dict[str, int]:
        return {"issuer": self.port, "issuer management": self.management_port}

    @property
    def _home(self) -> Path:
        return self.directory / "keycloak"

    @property
    def _imported(self) -> Path:
        """Contains the digest of what was imported, once it has been."""
        return self._home / "imported"

    @property
    def _digest(self) -> str:
        return _digest(VERSION, *self._realms.values(), *(f"{k}={v}" for k, v in sorted(self._variables.items())))

    @property
    def _variables(self) -> dict[str, str]:
        """What realm.json refers to."""
        secrets = {f"MARKET_{name.upper()}_SECRET": self._sign_in.secrets[name] for name in CALLERS}
        return {
            **secrets,
            "MARKET_TOOLS_SECRET": self._sign_in.secrets[TOOLS],
            "MARKET_PEOPLE_PASSWORD": self._sign_in.password or "",
            "MARKET_STOREFRONT_SECRET": self._sign_in.secrets[SHOP],
            "MARKET_WEB_PORT": str(self._web_ports["graphql"]),
            "MARKET_STOREFRONT_PORT": str(self._web_ports["storefront"]),
        }

    def prepare(self) -> None:
        super().prepare()
        self.directory.chmod(0o700)
        if not self._imported.exists() or self._imported.read_text() != self._digest:
            # A realm that exists is not imported again.
            shutil.rmtree(self._home, ignore_errors=True)
            for name in ("data/import", "providers", "conf", "themes"):
                (self._home / name).mkdir(parents=True)
            (self._home / "lib").symlink_to(cache_directory() / "lib")
            for name, realm in self._realms.items():
                write_text(self._home / "data" / "import" / f"{name}-realm.json", realm)

    def command(self) -> processes.Command:
        options = {
            "http-enabled": "true",
            "http-host": self.host,
            "http-port": str(self.port),
            "http-management-host": self.host,
            "http-management-port": str(self.management_port),
            "hostname": f"http://{self.host}:{self.port}",
            "cache": "local",
            # Not a line for each probe until it is ready.
            "log-level": "info,io.smallrye.health:warn",
        }
        arguments = ["start", "--optimized", "--import-realm", *(f"--{key}={value}" for key, value in options.items())]
        return processes.Command(_java(self._home, cache_directory(), arguments), self._variables)

    def probe(self) -> bool:
        if not http_ok(self.management_port, "/health/ready"):
            return False
        write_text(self._imported, self._digest)
        return True


def why_unavailable() -> str | None:
    """Return what this machine lacks to run Keycloak, or None if it can."""
    return java.why_unusable("Keycloak") or (
        None if is_prepared() or shutil.which("mvn") else "Maven is not installed (it downloads Keycloak)"
    )


def cache_directory() -> Path:
    """Return the directory of the prepared distribution, shared by all stacks of this user."""
    return cache.cache_directory() / f"keycloak-{VERSION}-{_digest(_SHA256, *_BUILD_OPTIONS)[:12]}"


def is_prepared() -> bool:
    """Return whether the prepared distribution is in the cache."""
    return cache_directory().exists()


def prepare_distribution() -> None:
    """Download Keycloak into the cache if it is missing, verify its hash, and let it build itself for its options.

    Takes a minute or two the first time. Raises StartError.
    """
    if reason := why_unavailable():
        raise StartError(f"--sign-in keycloak: {reason}")
    place = cache_directory()
    if place.exists():
        return
    with java.downloaded("Keycloak", _PACKAGE / "pom.xml", place) as work:
        archive = work / f"keycloak-quarkus-dist-{VERSION}.zip"
        with archive.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != _SHA256:
            raise StartError(f"unexpected hash of {archive.name}: {found}; remove it from Maven's repository")
        with zipfile.ZipFile(archive) as content:
            content.extractall(work)
        home = work / f"keycloak-{VERSION}"
        _run(_java(home, home, ["build", *_BUILD_OPTIONS]))
        cache.publish(home, place)


def _java(home: Path, distribution: Path, arguments: list[str]) -> list[str | Path]:
    """Return the command that runs Keycloak with its data in `home`."""
    directories = [f"-Dkc.home.dir={home}", f"-Djboss.server.config.dir={home / 'conf'}"]
    jar = distribution / "lib" / "quarkus-run.jar"
    return [java.executable(), *_JVM, *_RUNTIME, *directories, "-cp", jar, _MAIN, *arguments]


def _run(command: list[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        reason = ([*done.stdout.strip().splitlines(), *done.stderr.strip().splitlines()] or ["no error message"])[-1]
        raise StartError(f"Keycloak could not be prepared: {reason[:300]}")


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
