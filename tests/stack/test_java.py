"""Java's version is read from the file that an installation has, or else printed by Java."""

from __future__ import annotations

from pathlib import Path

import pytest
from market_dev.stack import java


@pytest.mark.parametrize(
    ("release", "printed", "reason"),
    [
        ('IMPLEMENTOR="x"\nJAVA_VERSION="21.0.1"\n', "", None),
        (
            'JAVA_RUNTIME_VERSION="21"\nJAVA_VERSION="1.8.0"\n',
            'version "21.0.1"',
            "the Java version is 1 (it needs Java 17 or newer)",
        ),
        ("something else\n", 'openjdk version "17.0.15" 2025-04-15', None),
        (None, 'openjdk version "11.0.2"', "the Java version is 11 (it needs Java 17 or newer)"),
        (None, "", "the Java version is unknown (it needs Java 17 or newer)"),
    ],
)
def test_the_version_is_found_in_the_installation_or_printed(
    release: str | None, printed: str, reason: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "jdk" / "bin").mkdir(parents=True)
    if release is not None:
        (tmp_path / "jdk" / "release").write_text(release)
    program = tmp_path / "jdk" / "bin" / "java"
    program.write_text(f"#!/bin/sh\necho '{printed}' >&2\n")
    program.chmod(0o755)
    # As distributions install it: a link to the installation.
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "java").symlink_to(program)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")
    assert java.why_unusable("it") == reason
