"""Runs the commands of the README in both languages, and compares their output with what the README shows."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from market_dev.commands import demo
from market_dev.shop_client import ShopClient

from tests.support.readme import READMES, ROOT, blocks, check_output, run
from tests.system.whole_shop import MARKET, System


@pytest.fixture
async def teapot(shop: System) -> None:
    """The product that the README orders, from the demo catalogue."""
    product = next(p for p in demo.catalogue() if p.slug == "teapot")
    async with ShopClient.at(port_base=shop.port_base, url=None) as client:
        await demo.create(client, product)


@pytest.mark.parametrize("name", READMES)
async def test_the_commands_of_the_readme_print_what_it_shows(shop: System, teapot: None, name: str) -> None:
    commands = blocks(name, sign_in=False)
    assert len(commands) == 4
    for command, language, expected in commands:
        await check_output(command, language, expected, shop.port_base)


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
    assert [command for command, _ in rows] == ["up", "token", "import", "replay", "reconcile", "dead-letters", "chaos"]
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
    for sign_in in (False, True):
        english, russian = (blocks(name, sign_in=sign_in) for name in READMES)
        assert english == russian


def test_the_index_of_decisions_names_each_page() -> None:
    folder = ROOT / "docs" / "decisions"
    linked = re.findall(r"\]\(([0-9][^)]*\.md)\)", (folder / "README.md").read_text("utf-8"))
    assert linked == sorted(path.name for path in folder.glob("[0-9]*.md"))
