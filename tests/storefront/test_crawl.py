"""A scanner's run: every link and form of the shop, as a visitor, a buyer and a merchant, with wrong input everywhere.

The crawl is the same in each run: pages in the order in which they are found, one of each kind, and fixed wrong values.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from urllib.parse import parse_qsl, quote, urljoin, urlsplit

import httpx
import pytest

from tests.storefront import tour
from tests.storefront.faulty_gateway import FaultyGateway
from tests.storefront.signed_in import Browser, signing_in
from tests.storefront.test_purchase import new_user
from tests.storefront.visitor import Document, Form, Shop

MARKUP = "%22%27%3E%3Cscript%3Ealert(1)%3C/script%3E"
# Percent-encoded, because some are not UTF-8.
WRONG = (
    "",
    "-1",
    "9" * 40,
    "1e309",
    "%FF%FE",
    "%00",
    MARKUP,
    "%0D%0ASet-Cookie:%20injected=1",
    "//evil.example/",
    "https://evil.example/",
    "..%2F..%2Fetc%2Fpasswd",
    "%7B%7B7*7%7D%7D",
    "A" * 3000,
)
OVERSIZED = "A" * 1_200_000
# For pages on which another crawl tries all of them.
SOME_WRONG = ("", "%FF%FE", MARKUP)
WRONG_COOKIES = (b"x", b"\xff\xfe", b"A" * 5000, b"e30.a.b", b'"', b"%00")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# Pages that end the visit, so they come last.
LAST = ("/sign-out",)
# Requests in flight, and the most kinds of pages and forms of one crawl.
AT_ONCE, MAX_KINDS = 6, 80


class Crawler:
    """Follows links and forms, and notes what is wrong with the responses.

    issuer: scheme and host to which redirections may lead
    within: the beginnings of the paths that are visited
    known: the beginnings of those that another crawl visits, too, with all wrong values
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        issuer: str = "",
        within: tuple[str, ...] = ("/",),
        known: tuple[str, ...] = (),
    ) -> None:
        self.http = http
        self.problems: list[str] = []
        self.kinds: list[str] = []
        self._issuer = issuer
        self._within = within
        self._known = known
        self._base = str(http.base_url).rstrip("/")

    async def crawl(self, seeds: Iterable[str]) -> None:
        queue, last = list(seeds), []
        while queue and len(self.kinds) < MAX_KINDS:
            path = queue.pop(0)
            if not self._is_new("GET", path):
                continue
            response = await self._send("GET", path)
            if response.headers.get("content-type", "").startswith("text/html"):
                page = Document(response.text)
                queue += [link for link in map(self._local, page.links) if link]
                for form in page.forms:
                    if form.method == "get":
                        names = [name for name, _ in form.fields]
                        queue.append(f"{form.action}?" + "&".join(f"{name}=a" for name in names))
                    elif form.action in LAST:
                        last.append(form)
                    else:
                        await self._send_wrong_forms(form)
            await self._ask_with_wrong_values(path)
        for form in last:
            await self._send_wrong_forms(form)

    async def send_wrong_cookies(self, paths: Iterable[str]) -> None:
        """Open pages with each cookie that this browser has replaced by something else."""
        names = sorted({cookie.name for cookie in self.http.cookies.jar})
        async with httpx.AsyncClient(base_url=self._base, timeout=60) as other:
            for path in paths:
                for name in names:
                    headers = [{"cookie": name.encode() + b"=" + value} for value in WRONG_COOKIES]
                    await self._all(other.get(path, headers=h) for h in headers)

    async def _ask_with_wrong_values(self, address: str) -> None:
        path, _, query = address.partition("?")
        addresses = [f"{path}?{'x=1&' * 30}", f"{path}?%FF=%FF"]
        pairs = parse_qsl(query, keep_blank_values=True)
        for name, _ in pairs:
            others = "&".join(f"{quote(n)}={quote(v)}" for n, v in pairs if n != name)
            addresses += [f"{path}?{others}&{name}={wrong}" for wrong in self._wrong(path)]
            addresses.append(f"{path}?{others}&{name}=a&{name}=b")
        if found := UUID.search(path):
            addresses += [path.replace(found.group(), wrong or "x") for wrong in self._wrong(path)]
        await self._all(self.http.get(self._url(a)) for a in addresses)
        await self._all(self.http.request(method, self._url(path)) for method in ("PUT", "DELETE", "OPTIONS", "PATCH"))

    async def _send_wrong_forms(self, form: Form) -> None:
        if not self._is_new("POST", form.action):
            return
        fields = [*form.fields, *form.buttons[:1]]
        bodies = []
        for name in dict.fromkeys(name for name, _ in fields):
            others = "&".join(f"{quote(n)}={quote(v)}" for n, v in fields if n != name)
            bodies += [f"{others}&{name}={wrong}" for wrong in self._wrong(form.action)]
            bodies += [others, f"{others}&{name}=a&{name}=b"]
        valid = "&".join(f"{quote(n)}={quote(v)}" for n, v in fields)
        bodies += [f"{valid}&{'x=1&' * 400}", f"{valid}&x={OVERSIZED}", "%FF=%FF&=&&=", ""]
        await self._all(self._post(form.action, body) for body in bodies)
        types = ("application/json", "multipart/form-data; boundary=b", "multipart/form-data", "text/\xff")
        await self._all(self._post(form.action, "--b\r\n\r\n\r\n--b", content_type=t) for t in types)

    def _wrong(self, path: str) -> Sequence[str]:
        return SOME_WRONG if path.startswith(self._known) else WRONG

    def _post(self, path: str, body: str, content_type: str = "application/x-www-form-urlencoded") -> object:
        headers = {"origin": self._base, "content-type": content_type.encode("latin-1")}
        return self.http.post(self._url(path), content=body.encode(), headers=headers)  # type: ignore[arg-type]

    async def _send(self, method: str, path: str) -> httpx.Response:
        response = await self.http.request(method, self._url(path))
        self._check(response)
        return response

    async def _all(self, requests: Iterable[object]) -> None:
        pending = list(requests)
        while pending:
            some, pending = pending[:AT_ONCE], pending[AT_ONCE:]
            for response in await asyncio.gather(*some):  # type: ignore[call-overload]
                self._check(response)

    def _check(self, response: httpx.Response) -> None:
        request = f"{response.request.method} {response.request.url.raw_path.decode()[:200]} -> {response.status_code}"
        headers, text = response.headers, response.text
        if response.status_code >= 500 and response.status_code != 503:
            self.problems.append(request)
        # A JSON string is no markup: the response says its type, and that browsers must not guess another.
        is_json = headers.get("content-type", "") == "application/json"
        if "Traceback" in text or ("<script>alert" in text and not is_json):
            self.problems.append(f"{request}: {text[:200]}")
        if "injected" in headers.get("set-cookie", ""):
            self.problems.append(f"{request}: sets a cookie")
        location = headers.get("location", "")
        is_local = location.startswith("/") and not location.startswith(("//", "/\\"))
        if location and not is_local and not (self._issuer and location.startswith(self._issuer)):
            self.problems.append(f"{request}: leads to {location}")
        missing = [name for name in ("x-content-type-options",) if name not in headers]
        if headers.get("content-type", "").startswith("text/html"):
            missing += [
                name
                for name in ("content-security-policy", "x-frame-options", "referrer-policy", "cache-control")
                if name not in headers
            ]
        # A redirection without a body has nothing to protect.
        if missing and text:
            self.problems.append(f"{request}: has no {missing}")

    def _is_new(self, method: str, address: str) -> bool:
        path, _, query = address.partition("?")
        if not path.startswith(self._within):
            return False
        kind = f"{method} {UUID.sub('ID', path)} {sorted({name for name, _ in parse_qsl(query)})}"
        if kind in self.kinds:
            return False
        self.kinds.append(kind)
        return True

    def _local(self, link: str) -> str | None:
        parts = urlsplit(urljoin(self._base + "/", link))
        if f"{parts.scheme}://{parts.netloc}" != self._base:
            return None
        return parts.path + (f"?{parts.query}" if parts.query else "")

    def _url(self, path: str) -> httpx.URL:
        """Return the URL with the path as it is, which need not be valid."""
        return httpx.URL(self._base).copy_with(raw_path=path.encode("latin-1"))


@pytest.fixture(scope="module")
async def gateway(shop: Shop) -> AsyncIterator[FaultyGateway]:
    async with FaultyGateway(str(shop.stack.urls["graphql"]), shop.http, user=new_user()).serving() as gateway:
        yield gateway


async def order_of(http: httpx.AsyncClient, product_id: str, user: str) -> tuple[str, ...]:
    """Buy a product, put it into the basket again, and return the addresses from which a crawl begins."""
    base = str(http.base_url).rstrip("/")

    async def put() -> None:
        page = Document((await http.get(f"/products/{product_id}")).text)
        await http.post("/basket", data=dict(page.form("/basket").filled(action="add")), headers={"origin": base})

    await put()
    form = Document((await http.get("/checkout")).text).form("/checkout")
    data = dict(form.filled(name=user, email="ann@example.com"))
    response = await http.post("/checkout", data=data, headers={"origin": base})
    await put()
    pages = (
        "/",
        "/?q=a&sort=price&after=a",
        f"/products/{product_id}",
        "/basket",
        "/checkout",
        "/orders?name=a&after=a",
    )
    others = ("/suggestions?q=a", "/checkout/pending?wait=1", "/sitemap.xml", "/robots.txt", "/images/teapot.svg")
    return (
        *pages,
        response.headers["location"],
        *others,
        "/desk",
        "/sign-in?next=/orders",
        "/sign-in/callback?code=a&state=b",
    )


async def test_a_visitor_finds_no_internal_error(shop: Shop, gateway: FaultyGateway) -> None:
    product = await shop.create_product(name="Crawled teapot", image_url="/images/teapot.svg")
    async with tour.storefront(shop.stack, gateway) as url, httpx.AsyncClient(base_url=url, timeout=60) as http:
        crawler = Crawler(http)
        await crawler.crawl(await order_of(http, product["id"], gateway.user))
        await crawler.send_wrong_cookies(("/", "/basket", "/checkout/pending", "/orders"))
    assert not crawler.problems, "\n".join(crawler.problems)
    assert len(crawler.kinds) < MAX_KINDS
    assert {"POST /basket []", "POST /checkout []", "POST /language []"} <= set(crawler.kinds)
    assert any(kind.startswith("POST /orders/ID/cancellation") for kind in crawler.kinds)


@pytest.mark.parametrize(
    ("person", "known", "others", "form"),
    [
        ("ann", ("/checkout", "/orders"), ("/sign-",), "POST /checkout"),
        ("mia", ("/desk",), ("/sign-out",), "POST /desk"),
    ],
)
async def test_somebody_who_has_signed_in_finds_no_internal_error(
    shop: Shop,
    gateway: FaultyGateway,
    person: str,
    known: tuple[str, ...],
    others: tuple[str, ...],
    form: str,
    tmp_path: Path,
) -> None:
    product = await shop.create_product(name="Crawled teapot", image_url="/images/teapot.svg")
    async with signing_in(tmp_path, gateway_url=gateway.url) as world, world.new_browser() as browser:
        await Browser(browser.http).sign_in(person=person)
        crawler = Crawler(browser.http, issuer=world.issuer, within=known + others, known=known)
        await crawler.crawl(await order_of(browser.http, product["id"], gateway.user))
        await crawler.send_wrong_cookies(("/", "/orders"))
    assert not crawler.problems, "\n".join(crawler.problems)
    assert len(crawler.kinds) < MAX_KINDS
    assert "POST /sign-out []" in crawler.kinds
    assert any(kind.startswith(form) for kind in crawler.kinds)
