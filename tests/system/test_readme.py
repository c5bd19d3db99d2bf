"""Runs the commands of the README in both languages, and compares their output with what the README shows."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from market_dev.commands import demo
from market_dev.shop_client import ShopClient

from tests.support.waiting import until
from tests.system.whole_shop import MARKET, ROOT, System

READMES = ["README.md", "README.ru.md"]
_PORT = re.compile(r"127\.0\.0\.1:80(8[0-9])")


def blocks(name: str) -> list[tuple[str, str, str]]:
    """Return (command, language, output): each `sh` block with the language and the text of the block below it."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / name).read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [(text, *found[n + 1]) for n, (language, text) in enumerate(found) if language == "sh"]


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


@pytest.fixture
async def teapot(shop: System) -> None:
    """The product that the README orders, from the demo catalogue."""
    product = next(p for p in demo.catalogue() if p.slug == "teapot")
    async with ShopClient.at(port_base=shop.port_base, url=None) as client:
        await demo.create(client, product)


@pytest.mark.parametrize("name", READMES)
async def test_the_commands_of_the_readme_print_what_it_shows(shop: System, teapot: None, name: str) -> None:
    commands = blocks(name)
    assert len(commands) == 4
    for command, language, expected in commands:
        here = _PORT.sub(lambda m: f"127.0.0.1:{shop.port_base + int(m[1]) - 80}", command)
        # A mail arrives a moment after its order.
        response = await until(lambda here=here: run(here), what=command, interval=0.1)
        if language == "json":
            assert normalized(json.loads(response)) == normalized(json.loads(expected)), command
        else:
            assert normalized(response) == normalized(expected), command


async def run(command: str) -> str:
    process = await asyncio.create_subprocess_exec("bash", "-u", "-c", command, stdout=-1, stderr=-1, cwd=ROOT)
    out, err = await process.communicate()
    assert not err, f"{command}\n{err.decode()}"
    return out.decode()


async def test_the_addresses_of_the_readme_return_pages(shop: System, http: httpx.AsyncClient) -> None:
    for name in READMES:
        pages = re.findall(r"<http://127\.0\.0\.1:80(8\d)(/\S*?)>", (ROOT / name).read_text("utf-8"))
        assert len(pages) == 2
        for port, path in pages:
            response = await http.get(
                f"http://127.0.0.1:{shop.port_base + int(port) - 80}{path}", headers={"Accept": "text/html"}
            )
            assert (response.status_code, response.headers["content-type"].partition(";")[0]) == (200, "text/html")


@pytest.mark.parametrize("name", READMES)
async def test_each_market_command_has_the_options_that_the_readme_names(name: str) -> None:
    rows = re.findall(r"^\| `market ([a-z-]+)[^`]*` \|(.*)\|$", (ROOT / name).read_text("utf-8"), re.MULTILINE)
    assert [command for command, _ in rows] == ["up", "import", "replay", "reconcile", "dead-letters", "chaos"]
    for command, text in rows:
        help = await run(f"COLUMNS=200 {MARKET} {command} --help")
        for option in re.findall(r"--[a-z-]+", text):
            assert option in help, f"market {command} has no {option}"


@pytest.mark.parametrize(
    "document",
    sorted(
        str(path.relative_to(ROOT))
        for folder in ("", "docs", "docs/decisions")
        for path in (ROOT / folder).glob("*.md")
    ),
)
def test_the_targets_of_links_in_the_documentation_exist(document: str) -> None:
    path = ROOT / document
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text("utf-8")):
        if "://" not in link:
            assert (path.parent / link).exists(), f"{document} links to {link}"
    for command in re.findall(r"`make ([a-z-]+)", path.read_text("utf-8")):
        assert re.search(rf"^{command}:", Path(ROOT / "Makefile").read_text("utf-8"), re.MULTILINE), (
            f"{document} names make {command}"
        )


def test_both_readmes_have_the_same_commands_and_outputs() -> None:
    english, russian = (blocks(name) for name in READMES)
    assert english == russian


def test_the_index_of_decisions_names_each_page() -> None:
    folder = ROOT / "docs" / "decisions"
    linked = re.findall(r"\]\(([0-9][^)]*\.md)\)", (folder / "README.md").read_text("utf-8"))
    assert linked == sorted(path.name for path in folder.glob("[0-9]*.md"))
