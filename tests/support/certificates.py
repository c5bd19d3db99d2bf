"""Certificates for tests, made by openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path


def make_authority(directory: Path, name: str) -> Path:
    """Make a certificate authority, and return the file of its certificate."""
    _openssl("req -x509 -subj", f"/CN={name}", "-keyout", directory / f"{name}.key", "-out", directory / f"{name}.pem")
    return directory / f"{name}.pem"


def make_certificate(authority: Path, name: str) -> tuple[Path, Path]:
    """Make a certificate for the host name, signed by the authority; return its file and that of its key."""
    files = authority.with_name(f"{name}.crt"), authority.with_name(f"{name}.key")
    _openssl(
        "req -x509 -addext basicConstraints=critical,CA:FALSE -addext",
        f"subjectAltName=DNS:{name}",
        *("-subj", f"/CN={name}", "-CA", authority, "-CAkey", authority.with_suffix(".key")),
        *("-out", files[0], "-keyout", files[1]),
    )
    return files


def _openssl(options: str, *arguments: object) -> None:
    key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    subprocess.run(["openssl", *options.split(), *map(str, arguments), *key.split()], check=True, capture_output=True)
