"""Builds and runs programs in Go, Java, JavaScript and Python, each in a copy of its folder."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import grpc_tools

BUILD_SECONDS = 900
RUN_SECONDS = 120


def build(source: Path, work: Path, proto: Path | None = None, contracts: Sequence[Path] = ()) -> list[str]:
    """Build the program in a copy of `source` below `work`. Returns the command to which its arguments are added.

    The language follows from the files: go.mod (a program, or one tool to build), pom.xml (with one main class in
    src/main/java), package.json (run.js) or requirements.lock (run.py). Versions are those of the lock files. `proto`
    and `contracts` are copied to `proto/` and `contracts/` of the folder, from which the program's build generates its
    code: by go:generate, by Maven, by the script `build` of package.json, or by generate.sh beside requirements.lock.
    """
    folder = work / "-".join(source.parts[-2:])
    shutil.copytree(source, folder)
    if proto:
        (folder / "proto").mkdir()
        shutil.copy(proto, folder / "proto")
    if contracts:
        (folder / "contracts").mkdir()
        for contract in contracts:
            shutil.copy(contract, folder / "contracts")
    if (folder / "go.mod").exists():
        if proto:
            _generate_go(folder, proto.name)
        if contracts:
            _run(folder, "go", "generate", ".")
        tool = re.search(r"^tool ([^(\s]+)$", (folder / "go.mod").read_text(), re.MULTILINE)
        _run(folder, "go", "build", "-o", "program", tool[1] if tool and not (folder / "main.go").exists() else ".")
        return [str(folder / "program")]
    if (folder / "pom.xml").exists():
        _run(folder, "mvn", "-q", "-B", "package", "dependency:build-classpath", "-Dmdep.outputFile=classpath.txt")
        [main] = [p.stem for p in (folder / "src/main/java").glob("*.java")]
        classpath = f"{folder / 'target/classes'}:{(folder / 'classpath.txt').read_text()}"
        return ["java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-cp", classpath, main]
    if (folder / "package.json").exists():
        _run(folder, "npm", "ci", "--no-audit", "--no-fund")
        _run(folder, "npm", "run", "build", "--if-present")
        return ["node", str(folder / "run.js")]
    _run(folder, sys.executable, "-m", "venv", "env")
    _run(folder, "env/bin/python", "-m", "pip", "install", "-q", "--require-hashes", "-r", "requirements.lock")
    if (folder / "generate.sh").exists():
        path = f"{folder / 'env/bin'}:{os.environ['PATH']}"
        _run(folder, "bash", "-eu", "generate.sh", environment={"PATH": path})
    return [str(folder / "env/bin/python"), str(folder / "run.py")]


def _generate_go(folder: Path, proto: str) -> None:
    module = (folder / "go.mod").read_text().split()[1]
    package = f"{module}/{proto.removesuffix('.proto')}"
    plugins = [_run(folder, "go", "tool", "-n", name).strip() for name in ("protoc-gen-go", "protoc-gen-go-grpc")]
    options = [
        f"--{kind}_opt={option}" for kind in ("go", "go-grpc") for option in (f"module={module}", f"M{proto}={package}")
    ]
    _run(
        folder,
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        "-Iproto",
        f"-I{Path(grpc_tools.__file__).parent / '_proto'}",
        *(f"--plugin={plugin}" for plugin in plugins),
        "--go_out=.",
        "--go-grpc_out=.",
        *options,
        proto,
    )


def _run(folder: Path, *command: str, environment: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        env={**os.environ, **(environment or {})},
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


async def output(command: list[str], *arguments: str, fails: bool = False) -> str:
    """Run the program and return its standard output, or its standard error if it is expected to fail."""
    process = await asyncio.create_subprocess_exec(
        *command, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(RUN_SECONDS):
            shown, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert (process.returncode != 0) is fails, f"{command[0]}: {shown.decode()[-1000:]}{errors.decode()[-3000:]}"
    return (errors if fails else shown).decode()
