"""A page of another origin that uses the REST API, in a real browser."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import pytest

from tests.support.browser import CHROMIUM, dump, origin_port, page_on_another_origin

from .conftest import Start

PAGE = """<!doctype html><title>Another back office</title><pre id="result">no result</pre><script>
const products = "URL/api/product";
const body = { name: "Teapot", description: "x".repeat(3000), price: "34.00", currency: "GBP", stock: 2 };
const json = { "content-type": "application/json" };
async function run() {
  const found = {};
  const send = (method, value, headers) =>
    fetch(products, { method, headers: { ...json, ...headers }, body: JSON.stringify(value) });
  try {
    const created = await send("POST", body, { "idempotency-key": "from-a-browser" });
    found.created = created.status;
    found.location = created.headers.get("location") !== null;
    const repeated = await send("POST", body, { "idempotency-key": "from-a-browser" });
    found.repeated = [repeated.status, repeated.headers.get("idempotency-replayed")];
    const { id } = await created.json();
    const read = await fetch(`${products}/${id}`);
    const tag = read.headers.get("etag");
    found.tag = tag;
    found.unmodified = (await fetch(`${products}/${id}`, { headers: { "if-none-match": tag } })).status;
    const changed = { ...(await read.json()), price: "30.00" };
    found.replaced = (await send("PUT", changed, { "if-match": tag })).status;
    const late = await send("PUT", changed, { "if-match": tag });
    found.late = [late.status, (await late.json()).title];
    found.deleted = (await fetch(`${products}/${id}`, { method: "DELETE" })).status;
    found.gone = (await fetch(`${products}/${id}`)).status;
  } catch (error) { found.error = String(error); }
  document.getElementById("result").textContent = JSON.stringify(found);
}
run();
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
async def test_a_page_of_a_configured_origin_can_use_the_rest_api(start: Start, inventory_port: int, tmp_path: Path):
    origin, port = origin_port()
    async with (
        start(inventory_port, cors_origins=(origin,)) as products,
        page_on_another_origin(port, PAGE.replace("URL", str(products.http.base_url))) as url,
    ):
        dom = await dump(url, tmp_path / "profile")
    assert json.loads(unescape(re.findall(r'<pre id="result">(.*?)</pre>', dom)[0])) == {
        "created": 201,
        "location": True,
        "repeated": [200, "true"],
        # Chromium accepts zstd from https and from this host.
        "tag": '"1.available-zstd"',
        "unmodified": 304,
        "replaced": 200,
        "late": [412, "Precondition failed"],
        "deleted": 204,
        "gone": 404,
    }
