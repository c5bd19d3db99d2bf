"""A page of another origin that uses the gateway, in a real browser."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import pytest

from market.kit.config import Http
from tests.graphql.graphql_gateway import running_gateway
from tests.support.browser import CHROMIUM, dump, origin_port, page_on_another_origin
from tests.support.ports import free_port

PAGE = """<!doctype html><title>Another shop window</title><pre id="result">no result</pre><script>
const query = "{ products(limit: 2) { items { name } next } }";
async function run() {
  const found = {};
  const post = (extra) => fetch("URL", {
    method: "POST",
    headers: { "content-type": "application/json", "x-request-id": "from-a-browser-1" },
    body: JSON.stringify({ query }),
    ...extra,
  });
  try {
    const response = await post({});
    found.items = (await response.json()).data.products.items.length;
    found.request_id = response.headers.get("x-request-id");
    found.with_credentials = (await post({ credentials: "include" })).status;
    found.get = (await fetch("URL?query=" + encodeURIComponent(query))).status;
    found.bad = (await post({ body: "{" })).status;
  } catch (error) { found.error = String(error); }
  document.getElementById("result").textContent = JSON.stringify(found);
}
run();
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("is_allowed", [True, False])
async def test_a_page_of_a_configured_origin_can_use_graphql_and_no_other(tmp_path: Path, is_allowed: bool) -> None:
    origin, port = origin_port()
    http = Http(port=free_port(), cors_origins=(origin if is_allowed else "https://www.example.com",))
    async with (
        running_gateway(http=http) as gateway,
        page_on_another_origin(port, PAGE.replace("URL", gateway.url)) as url,
    ):
        dom = await dump(url, tmp_path / "profile")
    result = json.loads(unescape(re.findall(r'<pre id="result">(.*?)</pre>', dom)[0]))
    if is_allowed:
        assert result == {"items": 2, "request_id": "from-a-browser-1", "with_credentials": 200, "get": 200, "bad": 400}
    else:
        assert result == {"error": "TypeError: Failed to fetch"}
