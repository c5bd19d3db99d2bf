"""Servers that run on Java: checking what this machine has for them, and downloading them by Maven into a cache."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from market_dev.stack import cache
from market_dev.stack.servers.base import StartError

_MIN_VERSION = 17


def executable() -> str:
    """Return the path of Java."""
    return shutil.which("java") or "java"


def why_unusable(program: str) -> str | None:
    """Return why Java cannot run the program, or None if it can."""
    java = shutil.which("java")
    if java is None:
        return f"Java is not installed ({program} needs Java {_MIN_VERSION} or newer)"
    version = _major_version(java)
    if version is None or version < _MIN_VERSION:
        return f"the Java version is {version or 'unknown'} ({program} needs Java {_MIN_VERSION} or newer)"
    return None


def _major_version(java: str) -> int | None:
    """Return the major version of that Java, or None if it cannot be found out."""
    try:
        # Starting Java to print its version would take 0.2 s.
        release = (Path(java).resolve().parents[1] / "release").read_text("utf-8")
    except (OSError, ValueError, IndexError):
        release = ""
    found = re.search(r'(?m)^JAVA_VERSION="(\d+)', release)
    if found is None:
        banner = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
        found = re.search(r'version "(\d+)', banner)
    return int(found[1]) if found else None


@contextmanager
def downloaded(program: str, pom: Path, place: Path) -> Iterator[Path]:
    """Yield a new directory into which Maven has copied what the file `pom` names, for `cache.publish` to `place`.

    It is removed at the end, unless it was renamed. Raises StartError.
    """
    with ExitStack() as stack:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            directory = stack.enter_context(cache.unfinished_directory())
        except OSError as e:
            raise StartError(f"{program} cannot be written to {place.parent}: {e.strerror}") from None
        _download(program, pom, directory)
        yield directory


def _download(program: str, pom: Path, directory: Path) -> None:
    """Let Maven copy what the file `pom` names into the directory. Raises StartError."""
    goal = ["dependency:copy-dependencies", f"-DoutputDirectory={directory}"]
    try:
        done = subprocess.run(
            ["mvn", "-q", "-B", "-C", "-f", str(pom), *goal],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise StartError(f"Maven could not download {program}: mvn is not installed") from None
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if "ERROR" in line] or ["no error message"]
        raise StartError(f"Maven could not download {program}: {lines[0].removeprefix('[ERROR] ')[:300]}")
