"""Schemathesis, which compares a running service with its OpenAPI document."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path


async def check_with_schemathesis(
    document: Path, url: str, directory: Path, *, token: str | None = None, exclude: Sequence[str] = ()
) -> None:
    """Send what the document describes, and more, to the service. Fails for a 500 and an undocumented response.

    directory: where schemathesis may write
    token: a bearer token to send. Without one the service must be in mode `open`, which ignores tokens.
    exclude: the names of checks that do not apply to the service
    """
    # A schema cannot express all rules: a product must exist, with enough units in stock; a key was used before.
    excluded = ["positive_data_acceptance", *exclude]
    headers = [] if token is None else ["--header", f"Authorization: Bearer {token}"]
    if token is None:
        document = _without_sign_in(document, directory / "without-sign-in.json")
    run = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("schemathesis")),
        "run",
        str(document),
        "--url",
        url,
        "--max-examples",
        "10",
        "--seed",
        "1",
        "--phases",
        "coverage,fuzzing,stateful",
        "--continue-on-failure",
        "--no-shrink",
        "--checks",
        "all",
        "--exclude-checks",
        ",".join(excluded),
        *headers,
        "--generation-database",
        "none",
        "--no-color",
        # The machine may stand still for a moment.
        "--request-timeout",
        "120",
        "--suppress-health-check",
        "too_slow",
        cwd=directory,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await run.communicate()
    assert run.returncode == 0, output.decode()[-6000:]


def _without_sign_in(document: Path, copy: Path) -> Path:
    """Return a copy of the document as it applies in mode `open`: nobody needs a token."""
    contents = json.loads(document.read_text())
    for path in contents["paths"].values():
        for operation in path.values():
            operation.pop("security", None)
    contents["components"].pop("securitySchemes", None)
    copy.write_text(json.dumps(contents))
    return copy
