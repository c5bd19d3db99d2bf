"""The source of an earlier version, to run its services beside those of this version."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
# The last version whose idempotency keys belong to all users together.
GLOBAL_KEYS = "df729f3"


def unpack(commit: str, directory: Path) -> dict[str, str]:
    """Write the source of the commit to the directory, and return the environment in which Python runs it.

    The commit comes from the repository's history; its services run with the packages that are installed.
    """
    archive = subprocess.run(
        ["git", "-C", ROOT, "archive", "--format=tar", commit, "src"], check=True, capture_output=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(directory, filter="data")
    return {"PYTHONPATH": str(directory / "src")}
