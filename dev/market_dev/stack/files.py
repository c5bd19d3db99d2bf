"""Writing files of the data directory."""

from __future__ import annotations

import os
from pathlib import Path


def write_text(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Replace the file atomically: a reader sees the old content or the new."""
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    with open(new, "w", opener=lambda path, flags: os.open(path, flags, mode)) as file:
        file.write(text)
    new.rename(path)
