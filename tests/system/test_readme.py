"""The README's commands, in both languages, are run as they stand there, and answer what stands below them."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from market_dev.commands import demo
from market_dev.shop_client import Shop

from tests.support.waiting import until
from tests.system.whole_shop import MARKET, ROOT, System

READMES = ["README.md", "README.ru.md"]
_PORT = re.compile(r"127\.0\.0\.1:80(8[0-9])")


def blocks(name: str) -> list[tuple[str, str, str]]:
    """The commands to be run (`sh`), each with the language and the text of the block that follows."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / name).read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [(text, *found[n + 1]) for n, (language, text) in enumerate(found) if language == "sh"]


def shape(value: Any) -> Any:
    """The answer without what differs from run to run: ids and times."""
    if isinstance(value, dict):
        return {k: shape(v) for k, v in value.items()}
    if isinstance(value, list):
        return [shape(v) for v in value]
    if isinstance(value, str):
        value = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID", value)
        value = re.sub(r"\d{4}-\d\d-\d\dT[0-9:.]+Z", "TIME", value)
        return re.sub(r"\b[0-9A-F]{8}\b", "NUMBER", value)
    return value


@pytest.fixture
async def teapot(shop: System) -> None:
    """The good that the README orders, as the demo catalogue has it."""
    good = next(g for g in demo.catalogue() if g.slug == "teapot")
    async with Shop.at(port_base=shop.port_base, url=None) as client:
        await demo.make(client, good)


@pytest.mark.parametrize("name", READMES)
async def test_the_commands_of_the_readme_answer_what_it_says(shop: System, teapot: None, name: str) -> None:
    commands = blocks(name)
    assert len(commands) == 4
    for command, language, said in commands:
        here = _PORT.sub(lambda m: f"127.0.0.1:{shop.port_base + int(m[1]) - 80}", command)
        # A mail arrives a moment after its order.
        answer = await until(lambda here=here: run(here), what=command, interval=0.1)
        if language == "json":
            assert shape(json.loads(answer)) == shape(json.loads(said)), command
        else:
            assert shape(answer) == shape(said), command


async def run(command: str) -> str:
    process = await asyncio.create_subprocess_exec("bash", "-u", "-c", command, stdout=-1, stderr=-1, cwd=ROOT)
    out, err = await process.communicate()
    assert not err, f"{command}\n{err.decode()}"
    return out.decode()


async def test_the_addresses_of_the_readme_answer(shop: System, http: httpx.AsyncClient) -> None:
    for name in READMES:
        pages = re.findall(r"<http://127\.0\.0\.1:80(8\d)(/\S*?)>", (ROOT / name).read_text("utf-8"))
        assert len(pages) == 2
        for port, path in pages:
            answer = await http.get(
                f"http://127.0.0.1:{shop.port_base + int(port) - 80}{path}", headers={"Accept": "text/html"}
            )
            assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (200, "text/html")


@pytest.mark.parametrize("name", READMES)
async def test_each_command_of_market_that_the_readme_names_has_its_options(name: str) -> None:
    rows = re.findall(r"^\| `market ([a-z-]+)[^`]*` \|(.*)\|$", (ROOT / name).read_text("utf-8"), re.MULTILINE)
    assert [command for command, _ in rows] == ["up", "import", "replay", "reconcile", "dead-letters"]
    for command, text in rows:
        help = await run(f"COLUMNS=200 {MARKET} {command} --help")
        for option in re.findall(r"--[a-z-]+", text):
            assert option in help, f"market {command} has no {option}"


@pytest.mark.parametrize(
    "paper", ["README.md", "README.ru.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/decisions/README.md"]
)
def test_what_the_papers_link_to_is_there(paper: str) -> None:
    path = ROOT / paper
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text("utf-8")):
        if "://" not in link:
            assert (path.parent / link).exists(), f"{paper} links to {link}"
    for command in re.findall(r"`make ([a-z-]+)", path.read_text("utf-8")):
        assert re.search(rf"^{command}:", Path(ROOT / "Makefile").read_text("utf-8"), re.MULTILINE), (
            f"{paper} names make {command}"
        )


def test_both_readmes_have_the_same_commands_and_answers() -> None:
    english, russian = (blocks(name) for name in READMES)
    assert english == russian


def test_the_index_of_decisions_names_each_page() -> None:
    folder = ROOT / "docs" / "decisions"
    linked = re.findall(r"\]\(([0-9][^)]*\.md)\)", (folder / "README.md").read_text("utf-8"))
    assert linked == sorted(path.name for path in folder.glob("[0-9]*.md"))
