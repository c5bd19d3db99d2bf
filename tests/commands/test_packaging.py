"""What the wheels of the two distributions contain."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIG_FILES = {f"market_dev/config/{path.name}" for path in (ROOT / "config").glob("*.yaml")}
DATA_FILES = {
    "market_dev/commands/demo_catalogue/catalogue.yaml",
    "market_dev/issuer/page.html",
    "market_dev/mailcatcher/page.html",
    "market_dev/stack/kafka/libs.sha256",
    "market_dev/stack/kafka/pom.xml",
    "market_dev/stack/kafka/server.properties",
    "market_dev/stack/keycloak/pom.xml",
    "market_dev/stack/keycloak/realm.json",
}


def build_wheel(project: Path, directory: Path) -> zipfile.ZipFile:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    subprocess.run(command, cwd=project, check=True, capture_output=True)
    [wheel] = directory.glob("*.whl")
    return zipfile.ZipFile(wheel)


@pytest.mark.parametrize(
    ("project", "package", "commands"), [(ROOT, "market", []), (ROOT / "dev", "market_dev", ["market"])]
)
def test_only_the_development_wheel_installs_a_command(
    project: Path, package: str, commands: list[str], tmp_path: Path
) -> None:
    with build_wheel(project, tmp_path) as wheel:
        names = wheel.namelist()
        assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {package}
        entry_points = [wheel.read(name).decode() for name in names if name.endswith("entry_points.txt")]
        assert [line.split(" = ")[0] for text in entry_points for line in text.splitlines()[1:] if line] == commands


def test_the_development_wheel_contains_the_configuration_and_all_data_files(tmp_path: Path) -> None:
    with build_wheel(ROOT / "dev", tmp_path) as wheel:
        data = {name for name in wheel.namelist() if not name.endswith(".py") and ".dist-info/" not in name}
    assert len(CONFIG_FILES) == 6
    assert data == CONFIG_FILES | DATA_FILES
