"""TLS contexts whose files change."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from market.kit.tls import ReloadingContext


def test_a_file_that_was_replaced_is_read_again_even_if_its_modification_time_is_the_same(tmp_path: Path) -> None:
    file, new = tmp_path / "ca.pem", tmp_path / "new.pem"
    read: list[str] = []

    def build() -> ssl.SSLContext:
        read.append(file.read_text())
        return ssl.create_default_context()

    context = ReloadingContext(build, str(file))
    file.write_text("first")
    times = file.stat()
    assert context.get() is context.get()
    # As Kubernetes does it, within the resolution of the file system's clock.
    new.write_text("other")
    os.utime(new, ns=(times.st_atime_ns, times.st_mtime_ns))
    new.rename(file)
    assert context.get() is context.get()
    # As a program does it that writes into the file.
    file.write_text("longer")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert context.get() is context.get()
    assert read == ["first", "other", "longer"]
