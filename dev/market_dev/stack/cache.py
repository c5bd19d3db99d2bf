"""The directory in which stacks keep what they download or prepare, for the next start."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# With the host's name, because on a network file system the locks of other hosts are not seen.
_UNFINISHED = f"market-unfinished-{platform.node()}-"


def cache_directory() -> Path:
    """Return the directory, which all stacks of this user share."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "market"


@contextmanager
def unfinished_directory(parent: Path | None = None) -> Iterator[Path]:
    """Yield a new directory for something that is being made, which `publish` then renames. Raises OSError.

    It is removed at the end, unless it was renamed. If this process is killed, `remove_unfinished` removes it later.

    parent: where to make it; None: in the cache
    """
    parent = parent or cache_directory()
    parent.mkdir(parents=True, exist_ok=True)
    directory, lock = _make_locked(parent)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def publish(new: Path, place: Path) -> None:
    """Rename a directory to its final place, unless another stack has just made the same one. Raises OSError."""
    try:
        new.rename(place)
    except OSError:
        if not place.exists():
            raise


def remove_unfinished(parent: Path | None = None) -> None:
    """Remove the unfinished directories of processes that were killed, but not those of running ones.

    parent: where to look for them; None: in the cache
    """
    for directory in (parent or cache_directory()).glob(f"{_UNFINISHED}*"):
        # OSError: a running process has locked it or removed it, or it belongs to another user.
        with suppress(OSError):
            lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory, ignore_errors=True)
            finally:
                os.close(lock)


def _make_locked(parent: Path) -> tuple[Path, int]:
    """Return a new directory, and its file descriptor, which locks it until it is closed or this process exits."""
    while True:
        directory = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=parent))
        # FileNotFoundError: `remove_unfinished` of another process was faster.
        with suppress(FileNotFoundError):
            lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                # OSError: the file system has no locks. Then nobody removes the directory if this process is killed.
                with suppress(OSError):
                    fcntl.flock(lock, fcntl.LOCK_EX)
                directory.stat()
            except BaseException:
                os.close(lock)
                raise
            return directory, lock
