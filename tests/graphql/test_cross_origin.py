"""A page of another origin that uses the gateway, in a real browser."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import pytest

from market.kit.config import Http
from tests.graphql.graphql_gateway import running_gateway
from tests.graphql.signed_in import protected_gateway
from tests.support.browser import CHROMIUM, dump, origin_port, page_on_another_origin
from tests.support.issuer import Issuer
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


SIGNED_IN_PAGE = """<!doctype html><title>Another shop window</title><pre id="result">no result</pre><script>
async function orders(token) {
  const headers = { "content-type": "application/json", accept: "application/graphql-response+json" };
  if (token) headers.authorization = `Bearer ${token}`;
  const response = await fetch("URL", { method: "POST", headers, body: '{"query": "{ orders { total } }"}' });
  const { data, errors } = await response.json();
  const challenge = response.headers.get("www-authenticate");
  return [response.status, data?.orders?.total ?? null, errors?.[0].extensions.code ?? null, challenge !== null];
}
Promise.all([orders("TOKEN"), orders("broken"), orders()]).catch(String).then((found) => {
  document.getElementById("result").textContent = JSON.stringify(found);
});
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("is_any", [True, False])
async def test_a_page_of_another_origin_sends_its_visitors_token_and_reads_why_it_is_refused(
    tmp_path: Path, is_any: bool
) -> None:
    origin, port = origin_port()
    http = Http(port=free_port(), cors_origins=("*" if is_any else origin,))
    async with Issuer().serving() as issuer, protected_gateway(issuer, http=http) as gateway:
        page = SIGNED_IN_PAGE.replace("URL", gateway.url).replace("TOKEN", issuer.token("ann"))
        async with page_on_another_origin(port, page) as url:
            dom = await dump(url, tmp_path / "profile")
    assert json.loads(unescape(re.findall(r'<pre id="result">(.*?)</pre>', dom)[0])) == [
        [200, 25, None, False],
        [401, None, "UNAUTHENTICATED", True],
        [200, None, "UNAUTHENTICATED", False],
    ]
