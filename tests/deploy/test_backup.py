"""The scripts of the backups, with fakes of the stores' programs: what they accept, keep and show."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.conftest import ROOT, FakeCommands

BACKUP = ROOT / "deploy/base/backup"
URI = "mongodb://orders:secret@mongodb/"
# Prints its arguments to a file, and what the file of --config contains.
FAKE_TOOL = """#!/bin/sh
case $1 in --help) echo "$HELP"; exit 0 ;; esac
echo "$@" >> "$LOG"
for word; do
  case $word in --config=*) { cat "${word#*=}"; stat -c %a "${word#*=}"; } >> "$LOG.config" ;; esac
done
exit 3
"""
# As the real one does: otherwise what writes to it may fail.
READING = """
if " exec -i " in line:
    sys.stdin.buffer.read()
for pattern, result"""


def run_tool(tmp_path: Path, options: str) -> tuple[str, str]:
    """Run mongodb_tool with a mongodump that has these options. Return its arguments, and what its configuration file
    had."""
    program = tmp_path / "mongodump"
    program.write_text(FAKE_TOOL)
    program.chmod(0o755)
    log = tmp_path / "log"
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HELP": options, "LOG": str(log)}
    code = f'umask 077; . {BACKUP}/mongodb-tool.sh; mongodb_tool mongodump "$0" --db=orders --archive'
    done = subprocess.run(["sh", "-c", code, URI], env=environ | {"TMPDIR": str(tmp_path)}, check=False)
    # The tool's own exit status.
    assert done.returncode == 3
    config = tmp_path / "log.config"
    return log.read_text().strip(), config.read_text() if config.exists() else ""


def test_the_password_is_in_a_private_file_if_the_tool_can_read_one(tmp_path: Path) -> None:
    arguments, config = run_tool(tmp_path, "--config=  path to a configuration file")
    assert "secret" not in arguments
    assert arguments.endswith(" --db=orders --archive")
    assert config == f'uri: "{URI}"\n600\n'
    assert not Path(arguments.split()[0].partition("=")[2]).exists()


def test_an_older_tool_gets_the_uri_as_an_argument(tmp_path: Path) -> None:
    assert run_tool(tmp_path, "--uri=") == (f"--uri={URI} --db=orders --archive", "")


FAKE_DUMP = f"""#!{sys.executable} -IS
import os, sys
from pathlib import Path
name = Path(sys.argv[0]).name
content = Path(os.environ["DUMP"]).read_text()
target = [a.partition("=")[2] for a in sys.argv if a.startswith("--file=")][0]
if name == "pg_dump":
    Path(target).write_text(content)
elif "broken" in Path(sys.argv[-1]).read_text():
    sys.exit("pg_restore: error: could not read from input file: end of file")
"""


class Volume:
    """Runs backup.sh on a folder instead of the volume, with fakes of pg_dump and pg_restore."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "backups"
        self.folder.mkdir()
        self.runs = 0
        self.dump = folder / "dump"
        self.program = folder / "backup.sh"
        self.program.write_text((BACKUP / "backup.sh").read_text().replace("/backups", str(self.folder)))
        shutil.copy(BACKUP / "mongodb-tool.sh", folder)
        for name in ("pg_dump", "pg_restore"):
            (folder / name).write_text(FAKE_DUMP)
            (folder / name).chmod(0o755)
        self.environ = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "DUMP": str(self.dump)}
        self.environ |= {"KEEP": "2", "MIN_PERCENT": "50", "INVENTORY_PASSWORD": "x", "PRODUCTS_PASSWORD": "x"}

    def back_up(self, content: str) -> subprocess.CompletedProcess[str]:
        self.dump.write_text(content)
        # Names have seconds.
        self.runs += 1
        for path in list(self.folder.iterdir()):
            if not path.name.startswith("2000"):
                path.rename(self.folder / f"200001{self.runs:02}T000000Z{path.suffix}")
        command = ["sh", str(self.program), "postgresql"]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=self.environ)

    def complete(self) -> list[Path]:
        return sorted(p for p in self.folder.iterdir() if p.suffix != ".partial")


def test_a_daily_backup_has_a_manifest_with_sizes_checksums_and_times(tmp_path: Path) -> None:
    volume = Volume(tmp_path)
    done = volume.back_up("content")
    assert done.returncode == 0, done.stderr
    [folder] = volume.complete()
    lines = [line.split() for line in (folder / "manifest").read_text().splitlines()]
    digest = hashlib.sha256(b"content").hexdigest()
    assert [line[:3] for line in lines] == [["inventory.dump", "7", digest], ["products.dump", "7", digest]]
    assert all(line[3] <= line[4] for line in lines)
    assert oct(folder.stat().st_mode)[-3:] == "700"


def test_only_the_newest_daily_backups_are_kept(tmp_path: Path) -> None:
    volume = Volume(tmp_path)
    for number in range(4):
        assert volume.back_up(f"content {number}").returncode == 0
    assert [(p / "inventory.dump").read_text() for p in volume.complete()] == ["content 2", "content 3"]


@pytest.mark.parametrize(
    ("content", "reason"), [("broken", "could not read from input file"), ("1", "less than 50 % of the previous")]
)
def test_a_bad_daily_backup_fails_and_replaces_none(tmp_path: Path, content: str, reason: str) -> None:
    volume = Volume(tmp_path)
    for _ in range(2):
        assert volume.back_up("content").returncode == 0
    done = volume.back_up(content)
    assert done.returncode == 1
    assert reason in done.stderr
    assert len(volume.complete()) == 2


def archive(*documents: bytes, magic: bool = True) -> bytes:
    body = b"".join(struct.pack("<i", len(d) + 5) + d + b"\0" for d in documents)
    return (b"\x6d\xe2\x99\x81" if magic else b"") + body + b"\xff\xff\xff\xff" * magic


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (archive(b"", b"\x10a\0\1\0\0\0"), None),
        (archive(b"", magic=False), None),
        (archive(b"", b"\x10a\0\1\0\0\0")[:-9], "ends in the middle of a document, at byte 13"),
        (b"\n", "ends in the middle of a document"),
        (b"", "it has no documents"),
        (b"Failed: no reachable servers\n", "a document cannot have 1818845510 bytes"),
    ],
)
def test_an_archive_is_read_to_its_end(tmp_path: Path, content: bytes, error: str | None) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node, which runs the check as mongosh does, is not installed")
    path = tmp_path / "archive"
    path.write_bytes(content)
    done = subprocess.run(
        [node, BACKUP / "check-archive.js"],
        capture_output=True,
        text=True,
        check=False,
        env={"ARCHIVE": str(path)},
    )
    assert done.returncode == (0 if error is None else 1)
    assert (error or "") in done.stderr


def write_backup(folder: Path) -> Path:
    folder.mkdir()
    lines = []
    for name in ("inventory.dump", "products.dump", "orders.archive"):
        (folder / name).write_bytes(b"content")
        digest = hashlib.sha256(b"content").hexdigest()
        lines.append(f"{name} 7 {digest} 2026-01-01T00:00:00Z 2026-01-01T00:00:01Z\n")
    (folder / "manifest").write_text("".join(lines))
    return folder


def test_restore_changes_nothing_if_a_file_is_not_as_in_the_manifest(minikube: FakeCommands, tmp_path: Path) -> None:
    folder = write_backup(tmp_path / "backup")
    (folder / "orders.archive").write_bytes(b"\n")
    done = minikube.run("restore.sh", str(folder), "--yes")
    assert (done.returncode, "orders.archive has 1 bytes, the manifest says 7" in done.stderr) == (1, True)
    (folder / "orders.archive").write_bytes(b"changed")
    done = minikube.run("restore.sh", str(folder), "--yes")
    assert (done.returncode, "has another checksum" in done.stderr) == (1, True)
    assert minikube.calls() == []


@pytest.mark.parametrize("ended", ["2026-01-01T00:00:01Z", "2126-01-01T00:00:01Z"])
def test_restore_reconciles_only_once_the_orders_of_the_backup_are_old_enough(
    minikube: FakeCommands, tmp_path: Path, ended: str
) -> None:
    """reconcile leaves out orders that may be in progress, which are those of the last minute."""
    folder = write_backup(tmp_path / "backup")
    manifest = folder / "manifest"
    manifest.write_text(manifest.read_text().replace("2026-01-01T00:00:01Z", ended))
    kubectl = minikube.folder / "bin/kubectl"
    shutil.copy(kubectl, minikube.folder / "bin/sleep")
    kubectl.write_text(kubectl.read_text().replace("\nfor pattern, result", READING, 1))
    minikube.results |= {"get pod ": "pod/a", ".data.mongodb_root": "c2VjcmV0", "get deployment ": "2"}
    done = minikube.run("restore.sh", str(folder), "--yes")
    assert done.returncode == 0, done.stderr
    calls = minikube.calls()
    [reconciling] = [number for number, call in enumerate(calls) if " reconcile " in call]
    pauses = [number for number, call in enumerate(calls) if call.startswith("sleep ")]
    assert pauses == ([reconciling - 1] if ended.startswith("2126") else [])


def test_restore_outside_minikube_and_kind_requires_yes(minikube: FakeCommands, tmp_path: Path) -> None:
    minikube.results = {"config current-context": "cloud", "minikube\\.k8s\\.io/name": "", "get pod ": "pod/a"}
    done = minikube.run("restore.sh", str(write_backup(tmp_path / "backup")))
    assert (done.returncode, "--yes" in done.stderr) == (3, True)
    assert "orders.archive as of 2026-01-01T00:00:00Z" in done.stdout
    assert not [call for call in minikube.calls() if " exec " in call or " scale " in call]


def test_backup_check_fails_if_a_daily_backup_is_missing_or_too_old(minikube: FakeCommands) -> None:
    minikube.results["cronjob backup-postgresql"] = "2026-01-01T00:00:00Z"
    done = minikube.run("backup.sh", "--check")
    assert done.returncode == 1
    assert "backup-postgresql: older than 26 hours" in done.stdout
    assert "backup-mongodb: no backup yet" in done.stdout


def test_a_backup_with_an_empty_file_never_gets_its_final_name(minikube: FakeCommands, tmp_path: Path) -> None:
    minikube.results["get pod "] = "pod/a"
    done = minikube.run("backup.sh", "--to", str(tmp_path / "to"))
    assert (done.returncode, "inventory.dump is empty" in done.stderr) == (1, True)
    assert [p.suffix for p in (tmp_path / "to").iterdir()] == [".partial"]


@pytest.mark.parametrize("script", ["backup.sh", "restore.sh"])
def test_help_and_wrong_usage_have_their_exit_codes(fake_commands: FakeCommands, script: str) -> None:
    done = fake_commands.run(script, "--help")
    assert (done.returncode, done.stdout.startswith(f"scripts/{script}")) == (0, True)
    for options in (["--nonsense"], ["--context"]):
        assert fake_commands.run(script, *options).returncode == 2
    assert fake_commands.calls() == []
