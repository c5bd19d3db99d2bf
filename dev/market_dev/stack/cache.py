"""The directory in which stacks keep what they download or prepare, for the next start."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """Return the directory, which all stacks of this user share."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "market"


def publish(new: Path, place: Path) -> None:
    """Rename a directory to its final place, unless another stack has just made the same one. Raises OSError."""
    try:
        new.rename(place)
    except OSError:
        if not place.exists():
            raise
