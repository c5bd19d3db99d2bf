"""GraphiQL and the product images: served from the package, and nothing else is."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from starlette.requests import Request

from market.graphql.graphiql.files import StaticFiles
from market.kit.errors import NotFound
from tests.graphql.graphql_gateway import Gateway
from tests.support.browser import CHROMIUM, dump

ROOT = Path(__file__).parents[2]


def test_the_published_schema_is_the_file_in_the_package() -> None:
    published = ROOT / "graphql/schema.graphql"
    assert published.resolve() == ROOT / "src/market/graphql/schema.graphql"
    assert published.is_symlink()
    assert "type Query" in published.read_text()


def test_the_wheel_has_every_file_that_the_gateway_serves_and_no_bundle_sources(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    static = ROOT / "src/market/graphql/graphiql/static"
    needed = [ROOT / "src/market/graphql/schema.graphql", *(p for p in static.rglob("*") if p.is_file())]
    assert {str(p.relative_to(ROOT / "src")) for p in needed} <= names
    assert not [name for name in names if "graphiql/source" in name]


async def test_the_page_and_its_files_come_from_this_host(gateway: Gateway) -> None:
    page = await gateway.http.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    needed = re.findall(r'(?:src|href)="([^"]*)"', page.text)
    assert all(n.startswith(("/graphiql/", "data:")) for n in needed)
    for path in (n for n in needed if n.startswith("/")):
        file = await gateway.http.get(path)
        assert file.status_code == 200
        assert file.headers["content-encoding"] == "gzip" if len(file.content) > 1024 else True
        again = await gateway.http.get(path, headers={"if-none-match": file.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert (await gateway.http.head(path)).content == b""
    css = (await gateway.http.get("/graphiql/graphiql.css")).text
    assert not re.findall(r"url\((?!['\"]?data:)[^)]*\)", css)


async def test_every_image_of_the_demo_catalogue_is_served(gateway: Gateway) -> None:
    images = list((ROOT / "src/market/graphql/graphiql/static/images").glob("*.svg"))
    assert len(images) == 40
    for file in images:
        response = await gateway.http.get(f"/images/{file.name}")
        assert (response.status_code, response.headers["content-type"], response.content) == (
            200,
            "image/svg+xml",
            file.read_bytes(),
        )
        assert response.headers["cache-control"] == "public, max-age=3600"
        assert response.headers["content-security-policy"] == "default-src 'none'; style-src 'unsafe-inline'"


@pytest.mark.parametrize(
    "path",
    [
        "/images/",
        "/images/none.svg",
        "/images/../files.py",
        "/images/..%2Ffiles.py",
        "/images/%2e%2e/%2e%2e/app.py",
        "/graphiql/source/graphiql.js",
        "/graphiql/../../schema.graphql",
        "/graphiql",
        "/static/graphiql/graphiql.js",
        "/graphql/graphql",
        "/.env",
        "/images/x.svg%00",
    ],
)
async def test_nothing_else_is_served(gateway: Gateway, path: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.http.base_url.port)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
    response = await reader.read()
    writer.close()
    assert b" 404 " in response.split(b"\r\n")[0]
    assert b"application/problem+json" in response


async def test_a_browser_that_opens_the_endpoint_gets_the_page(gateway: Gateway) -> None:
    page = await gateway.http.get("/")
    response = await gateway.http.get("/graphql", headers={"accept": "text/html,*/*;q=0.8"})
    assert (response.status_code, response.content) == (200, page.content)
    assert response.headers["content-security-policy"] == page.headers["content-security-policy"]
    assert (response.headers["vary"], response.headers["cache-control"]) == ("accept, accept-encoding", "no-cache")


async def test_a_browser_that_comes_back_from_the_issuer_gets_the_page(gateway: Gateway) -> None:
    page = await gateway.http.get("/")
    html = {"accept": "text/html,*/*;q=0.8"}
    for query in ("code=x%2Fy&state=z", "error=access_denied&state=z"):
        response = await gateway.http.get(f"/graphql?{query}", headers=html)
        assert (response.status_code, response.content) == (200, page.content)
        assert response.headers["cache-control"] == "no-store"
    for query in ("code=x", "state=x", "query={__typename}&code=x&state=y"):
        response = await gateway.http.get(f"/graphql?{query}", headers=html)
        assert "text/html" not in response.headers["content-type"]


async def test_a_package_without_images_serves_none() -> None:
    request = Request({"type": "http", "method": "GET", "path": "/images/teapot.svg", "headers": []})
    with pytest.raises(NotFound):
        await StaticFiles({}).get(request)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
async def test_a_browser_shows_graphiql_with_an_available_product_and_contacts_no_other_host(
    gateway: Gateway, tmp_path: Path
) -> None:
    log = tmp_path / "net.json"
    dom = await dump(f"{gateway.http.base_url}/", tmp_path / "profile", f"--log-net-log={log}")
    assert "graphiql-container" in dom
    text = re.sub(r"<[^>]+>", "", dom)
    assert "query" in text
    assert "CreateOrder" in text
    assert "visitor@example.test" in text
    # The first available product: in the fake, every third one is.
    assert next(p["id"] for p in gateway.products.resources.values() if p["available"]) in text
    own = f"http://127.0.0.1:{gateway.http.base_url.port}"
    sent = [
        e["params"]
        for e in json.loads(log.read_text())["events"]
        if "url" in e.get("params", {}) and "initiator" in e["params"]
    ]
    # The browser's own requests to its vendor have no initiator.
    of_the_page = {p["url"] for p in sent if p["initiator"].startswith(own)}
    assert f"{own}/graphql" in of_the_page
    assert [url for url in of_the_page if not url.startswith((f"{own}/", "data:"))] == []
