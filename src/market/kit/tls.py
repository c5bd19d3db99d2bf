"""TLS contexts that are rebuilt when their certificate files change."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path


class ReloadingContext:
    """A TLS context that is rebuilt when one of its files has changed. Open connections keep the old context.

    build: returns a new context
    files: the files that `build` reads. None is ignored
    """

    def __init__(self, build: Callable[[], ssl.SSLContext], *files: str | None) -> None:
        self._build = build
        self._files = [Path(file) for file in files if file is not None]
        # The versions of the files, and the context that was built from them.
        self._cached: tuple[list[FileVersion], ssl.SSLContext] | None = None

    def get(self) -> ssl.SSLContext:
        """Return the context. Raises OSError if a file is unreadable, or is not a certificate or a key."""
        versions = [file_version(file) for file in self._files]
        if self._cached is None or self._cached[0] != versions:
            self._cached = versions, self._build()
        return self._cached[1]


# Modification time, size and inode. The time alone is not enough: its resolution is a few milliseconds, and a copied
# file may keep the time of the original.
FileVersion = tuple[int, int, int]


def file_version(file: Path) -> FileVersion:
    """Return a value that changes when the file changes. Raises OSError if the file does not exist."""
    found = file.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino
