"""The commands of the README in both languages, and what it shows as their output."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.waiting import until

ROOT = Path(__file__).parents[2]
READMES = ["README.md", "README.ru.md"]
_PORT = re.compile(r"127\.0\.0\.1:80(8[0-9])")
# The section for a shop that requires sign-in shows the command that prints a token.
_TOKEN = ".venv/bin/market token"


def blocks(name: str, *, sign_in: bool) -> list[tuple[str, str, str]]:
    """Return (command, language, output): each `sh` block with the language and the text of the block below it.

    sign_in: whether the blocks of the section about sign-in are returned, or those of all others
    """
    found = []
    for section in re.split(r"^(?=## )", (ROOT / name).read_text("utf-8"), flags=re.MULTILINE):
        if (_TOKEN in section) == sign_in:
            fenced = re.findall(r"^```(\w+)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
            found += [(text, *fenced[n + 1]) for n, (language, text) in enumerate(fenced) if language == "sh"]
    return found


async def check_output(
    command: str, language: str, expected: str, port_base: int, change: Callable[[str], str] = str
) -> None:
    """Run a command of the README on the shop with that port base, after `change`, until its output is the README's."""
    here = change(_PORT.sub(lambda m: f"127.0.0.1:{port_base + int(m[1]) - 80}", command))
    shown = ""

    async def is_as_expected() -> bool:
        nonlocal shown
        shown = await run(here)
        if language == "json":
            return bool(shown) and normalized(json.loads(shown)) == normalized(json.loads(expected))
        return bool(normalized(shown) == normalized(expected))

    # A mail arrives a moment after its order, and a busy machine may exceed the deadline of an order.
    await until(is_as_expected, what=lambda: f"{command} prints {expected}; it prints {shown}", interval=0.5)


def normalized(value: Any) -> Any:
    """Replace ids and times, which differ between runs, by placeholders."""
    if isinstance(value, dict):
        return {k: normalized(v) for k, v in value.items()}
    if isinstance(value, list):
        return [normalized(v) for v in value]
    if isinstance(value, str):
        value = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID", value)
        value = re.sub(r"\d{4}-\d\d-\d\dT[0-9:.]+Z", "TIME", value)
        return re.sub(r"\b[0-9A-F]{8}\b", "NUMBER", value)
    return value


async def run(command: str) -> str:
    """Run a command in the repository, and return what it has printed; it must print no error."""
    process = await asyncio.create_subprocess_exec("bash", "-u", "-c", command, stdout=-1, stderr=-1, cwd=ROOT)
    out, err = await process.communicate()
    assert not err, f"{command}\n{err.decode()}"
    return out.decode()
