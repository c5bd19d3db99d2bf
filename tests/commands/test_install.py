"""scripts/install.sh: what it says when the environment cannot be installed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "install.sh"


@pytest.mark.parametrize(
    ("installing", "status", "advises"), [("exit 1", 1, True), ("kill -INT $PPID; exit 1", 130, False)]
)
def test_a_failed_installation_ends_with_advice_but_an_interrupted_one_does_not(
    installing: str, status: int, advises: bool, tmp_path: Path
) -> None:
    # A project with an environment, and programs in place of uv, which does not install anything, and of df.
    for folder in ("scripts", "bin", ".venv/bin"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(SCRIPT, tmp_path / "scripts")
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    installer = tmp_path / "bin" / "uv"
    installer.write_text(f"#!/bin/sh\necho 'cannot resolve the host' >&2\n{installing}\n")
    installer.chmod(0o755)
    disk = tmp_path / "bin" / "df"
    disk.write_text("#!/bin/sh\necho 'Filesystem 1024-blocks Used Available'\necho 'disk 9000000 1 8999999'\n")
    disk.chmod(0o755)
    done = subprocess.run(
        [tmp_path / "scripts" / "install.sh"],
        env={**os.environ, "PATH": f"{installer.parent}:{os.environ['PATH']}", "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
        # Tests that run in the background may have been started with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert done.returncode == status, done.stderr
    assert ("set PIP_INDEX_URL or a proxy" in done.stderr) == advises
