"""One request of a visitor: what they sent, who they are, and the response in their language.

A page is a function from a Visit to a response. `endpoint` wraps it: it reads the cookies, checks that a form was
sent by a page of this shop, writes the cookies that have changed, and turns every error into a page.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

from starlette.requests import Request
from starlette.responses import Response

from market.kit.auth.identity import token
from market.kit.errors import (
    BadInput,
    Malformed,
    MethodNotAllowed,
    Problem,
    TooLarge,
    Unauthenticated,
    Unavailable,
    UnsupportedMediaType,
)
from market.kit.http.edge import Endpoint
from market.kit.http.requests import parse_pairs, read_header
from market.kit.process import logs
from market.storefront.basket.basket import Basket, Baskets
from market.storefront.domain import FormRefused
from market.storefront.importing.importer import Importer
from market.storefront.pages.listing import Listing
from market.storefront.pages.uploads import MULTIPART, Upload, read_multipart
from market.storefront.rendering.html import Renderer
from market.storefront.service import Deps
from market.storefront.session.cookies import CookieJar
from market.storefront.session.session import Session, Sessions
from market.storefront.texts.languages import Language, choose

if TYPE_CHECKING:
    from market.storefront.sign_in.records import Person
    from market.storefront.sign_in.sign_in import Recognised, SignIn

log = logs.get_logger("storefront")

LANGUAGE_COOKIE = "market_language"
# A checkout of 50 lines has some 60 fields.
_MAX_FIELDS = 300
_MAX_FORM_BYTES = 1_048_576
# The roles of those who may enter the desk.
STAFF = ("merchant", "operator")
_FORM = b"application/x-www-form-urlencoded"


@dataclass(frozen=True)
class Site:
    """What all visits share.

    listing: the products of the sitemap
    public_url: scheme and host under which browsers reach the shop; None: http and the request's host
    sign_in: signs visitors in; None in mode `open`
    """

    deps: Deps
    listing: Listing
    renderer: Renderer
    cookies: CookieJar
    sessions: Sessions
    baskets: Baskets
    importer: Importer
    public_url: str | None = None
    sign_in: SignIn | None = None

    @property
    def is_open(self) -> bool:
        """Whether nobody signs in (mode `open`)."""
        return self.sign_in is None


@dataclass
class Visit:
    """A request. A page may replace `session` and `basket`; they are kept in the visitor's browser.

    person: who has signed in; None if nobody has
    has_page: whether the path has a page for GET, too
    context: further values for every template of this request
    """

    site: Site
    request: Request
    language: Language
    session: Session
    basket: Basket
    person: Person | None = None
    form: Mapping[str, list[str]] = field(default_factory=dict)
    upload: Upload | None = None
    has_page: bool = True
    context: Mapping[str, Any] = field(default_factory=dict)

    @property
    def deps(self) -> Deps:
        """The dependencies of the use cases."""
        return self.site.deps

    @property
    def origin(self) -> str:
        """The scheme and the host under which the browser has reached the shop."""
        return self.site.public_url or f"http://{self.request.headers.get('host', 'localhost')}"

    def parameter(self, name: str) -> str:
        """Return a parameter of the path."""
        return str(self.request.path_params[name])

    def query(self, name: str) -> str:
        """Return a parameter of the query string; "" if it is absent. Raises BadInput."""
        pairs = parse_pairs(self.request.scope["query_string"], 20)
        return next((value for key, value in pairs if key == name), "")

    def value(self, name: str) -> str:
        """Return a field of the form, stripped of white space; "" if it is absent."""
        return next(iter(self.form.get(name, ())), "").strip()

    def values(self, name: str) -> list[str]:
        """Return all values of a field that the form may contain several times."""
        return list(self.form.get(name, ()))

    def page(self, template: str, *, status: int = 200, problem: Problem | None = None, **values: Any) -> Response:
        """Render a page. The header Retry-After is that of `problem`, if it is Unavailable."""
        values = {"visit": self, "problem": problem, **self.context, **values}
        response = self.site.renderer.page(template, self.language, values, status=status)
        if isinstance(problem, Unavailable):
            response.headers["retry-after"] = str(problem.retry_after)
        return response

    # The properties below are for templates.

    @property
    def form_token(self) -> str:
        """The token that a form of this page must contain."""
        return self.site.sessions.form_token(self.session)

    @property
    def path(self) -> str:
        """The path of this page with its query string."""
        query_string = self.request.scope["query_string"].decode("latin-1")
        path = quote(self.request.scope["path"])
        return f"{path}?{query_string}" if query_string else path

    @property
    def page_path(self) -> str:
        """The path of this page; of the page above if this path has none for GET."""
        if self.has_page:
            return self.path
        return quote(self.request.scope["path"]).rpartition("/")[0] or "/"

    @property
    def sign_in_path(self) -> str:
        """The path at which the visitor signs in, and then returns to this page."""
        is_page = self.request.method in ("GET", "HEAD") and not self.request.scope["path"].startswith("/sign-in")
        return "/sign-in?" + urlencode({"next": self.path if is_page else "/"})

    @property
    def may_enter_desk(self) -> bool:
        """Whether the visitor may enter the desk, /desk. In mode `open`, everybody may."""
        if self.site.is_open:
            return True
        return self.person is not None and not set(STAFF).isdisjoint(self.person.roles)

    @property
    def languages(self) -> tuple[Language, ...]:
        """All languages of the shop."""
        return tuple(self.site.renderer.languages.values())


Page = Callable[[Visit], Awaitable[Response]]


def redirect(path: str) -> Response:
    """Return a redirect (303) to a page of this host; to "/" if the path is not one of this host."""
    return Response(status_code=303, headers={"location": local_path(path), "cache-control": "no-store"})


def local_path(path: str) -> str:
    """Return the path if it is one of this host, else "/"."""
    # Browsers treat a backslash as a slash, and ignore control characters, so both could lead to another host.
    if not path.startswith("/") or path.startswith(("//", "/\\")) or not path.isascii() or not path.isprintable():
        return "/"
    return path


def endpoint(
    site: Site,
    page: Page,
    *,
    needs_sign_in: bool = False,
    is_shared: bool = False,
    takes_files: bool = False,
    has_page: bool = True,
) -> Endpoint:
    """Return the endpoint of a page.

    needs_sign_in: visitors who have not signed in are redirected to do so, except in mode `open`
    is_shared: the response is the same for all visitors, so that caches may store it, and does not depend on sign-in
    takes_files: its forms may contain a file, and be larger than 1 MiB
    has_page: whether the path has a page for GET, too
    """

    async def respond(request: Request) -> Response:
        session, is_new = site.sessions.read(request)
        visit = Visit(site, request, _language(site, request), session, site.baskets.read(request))
        visit.has_page = has_page
        basket = visit.basket
        recognised = None
        try:
            if not is_shared:
                recognised = await _recognise(visit)
            if request.method == "POST":
                visit.form, visit.upload = await _read_form(request, takes_files=takes_files)
                _check_origin(visit)
            if needs_sign_in and visit.person is None and site.sign_in is not None:
                response = _require_sign_in(visit, recognised)
            else:
                response = await page(visit)
        except Unauthenticated as e:
            # The shop does not accept the token, so the page must not show anybody as signed in.
            visit.person = recognised = None
            response = problem_page(visit, e)
            if site.sign_in is not None:
                site.sign_in.end_session(response)
        except Problem as e:
            response = problem_page(visit, e)
        # If the page has replaced the session, it has also replaced these cookies.
        if site.sign_in is not None and recognised is not None and visit.session == session:
            site.sign_in.keep(response, recognised)
        # A new session is stored only with a page, because only forms in pages need it.
        if visit.session != session or (is_new and response.media_type == "text/html"):
            site.sessions.write(response, visit.session)
        if visit.basket != basket:
            site.baskets.write(response, visit.basket)
        return response

    return respond


async def _recognise(visit: Visit) -> Recognised | None:
    """Find out who the visitor is, and set their token for the calls of this request."""
    if visit.site.sign_in is None:
        return None
    recognised = await visit.site.sign_in.recognise(visit.request, visit.session.id)
    visit.person = recognised.person
    token.set(recognised.token)
    return recognised


def _require_sign_in(visit: Visit, recognised: Recognised | None) -> Response:
    """Redirect the visitor to sign in and then back; for a form, show a page that says that nothing was done."""
    if recognised is not None and recognised.is_unknown:
        raise Unavailable("the issuer is unavailable", retry_after=5)
    if visit.request.method == "POST":
        return visit.page("sign_in.html", status=401, reason="needed")
    if visit.request.headers.get("sec-fetch-mode", "navigate") != "navigate":
        # A script cannot follow a redirect to the issuer.
        return problem_page(visit, Unauthenticated())
    return redirect(visit.sign_in_path)


def problem_page(visit: Visit, problem: Problem) -> Response:
    """Return the page that shows an error."""
    status = 400 if problem.status == 422 else problem.status
    return visit.page("problem.html", status=status, problem=problem)


def stateless_problem_page(site: Site, scope: Any, problem: Problem) -> Response:
    """Return the page for an error of a request that matches no page."""
    request = Request(scope)
    session, _ = site.sessions.read(request)
    visit = Visit(site, request, _language(site, request), session, site.baskets.read(request))
    if site.sign_in is not None:
        visit.person = site.sign_in.peek(request, session.id)
    visit.has_page = not isinstance(problem, MethodNotAllowed)
    return problem_page(visit, problem)


def _language(site: Site, request: Request) -> Language:
    chosen = request.cookies.get(LANGUAGE_COOKIE, "")
    return choose(site.renderer.languages, chosen, request.headers.get("accept-language", ""))


async def _read_form(request: Request, *, takes_files: bool) -> tuple[dict[str, list[str]], Upload | None]:
    content_type = (read_header(request, b"content-type") or b"").partition(b";")[0].strip().lower()
    if takes_files and content_type == MULTIPART:
        return await read_multipart(request)
    if content_type != _FORM:
        raise UnsupportedMediaType("Content-Type", f"must be {_FORM.decode()}")
    body = await request.body()
    if len(body) > _MAX_FORM_BYTES and not takes_files:
        raise TooLarge("body", f"must be at most {_MAX_FORM_BYTES} bytes")
    form: dict[str, list[str]] = {}
    try:
        pairs = parse_pairs(body, _MAX_FIELDS)
    except BadInput:
        raise Malformed("body", "is not a form") from None
    for name, value in pairs:
        form.setdefault(name, []).append(value)
    return form, None


def _check_origin(visit: Visit) -> None:
    """Raise FormRefused unless the form was sent by a page of this shop, for this session."""
    if not _is_own(visit):
        raise FormRefused("the form was sent by a page of another site")
    if not visit.site.sessions.is_form_token(visit.session, visit.value("form_token")):
        raise FormRefused("the form is not of this session")


def _is_own(visit: Visit) -> bool:
    """Return whether the form was sent by a page of this shop, by the headers of the request."""
    headers = visit.request.headers
    # Browsers have sent Origin with every form since 2020. The other headers are for older ones.
    sent = headers.get("origin") or headers.get("referer")
    if sent is None:
        return headers.get("sec-fetch-site") in (None, "same-origin")
    try:
        parts, own = urlsplit(sent), urlsplit(visit.origin)
    except ValueError:
        return False
    return parts.netloc == own.netloc and (visit.site.public_url is None or parts.scheme == own.scheme)
