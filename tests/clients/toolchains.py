"""Builds and runs programs in Go, Java, JavaScript and Python, each in a copy of its folder."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

BUILD_SECONDS = 900
RUN_SECONDS = 120


def build(source: Path, work: Path) -> list[str]:
    """Build the program in a copy of `source` below `work`. Returns the command to which its arguments are added.

    The language follows from the files: go.mod, pom.xml (whose only class with a main method is in src/main/java),
    package.json (run.js) or requirements.lock (run.py). Versions are those of the lock files.
    """
    folder = work / "-".join(source.parts[-2:])
    shutil.copytree(source, folder)
    if (folder / "go.mod").exists():
        _run(folder, "go", "build", "-o", "program", ".")
        return [str(folder / "program")]
    if (folder / "pom.xml").exists():
        _run(folder, "mvn", "-q", "-B", "package", "dependency:build-classpath", "-Dmdep.outputFile=classpath.txt")
        [main] = [p.stem for p in (folder / "src/main/java").glob("*.java")]
        classpath = f"{folder / 'target/classes'}:{(folder / 'classpath.txt').read_text()}"
        return ["java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-cp", classpath, main]
    if (folder / "package.json").exists():
        _run(folder, "npm", "ci", "--no-audit", "--no-fund")
        return ["node", str(folder / "run.js")]
    _run(folder, sys.executable, "-m", "venv", "env")
    _run(folder, "env/bin/python", "-m", "pip", "install", "-q", "--require-hashes", "-r", "requirements.lock")
    return [str(folder / "env/bin/python"), str(folder / "run.py")]


def _run(folder: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=BUILD_SECONDS, env=os.environ)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


async def output(command: list[str], *arguments: str) -> str:
    """Run the program and return its standard output. Fails with its standard error if it does."""
    process = await asyncio.create_subprocess_exec(
        *command, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(RUN_SECONDS):
            shown, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, f"{command[0]}: {errors.decode()[-3000:]}"
    return shown.decode()
