"""The read-only pages: what is wrong, why, and on what evidence, for whoever opens a browser.

Rendered here, without a script, from the same description as the terminal's. Everything a node or tenant wrote is escaped; the
content security policy allows our style sheet and nothing else. A request for a host name that is not ours is refused, so that a
foreign page cannot read these by pointing its own name at this address.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping
from functools import partial
from importlib import resources
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aggregator.identity import Authenticator, Forbidden, Unauthenticated
from aggregator.model import Incident, IncidentState
from aggregator.render import describe, subject
from aggregator.store import Store, queries

PAGE_SIZE = 50
MAX_NAME = 253  # a DNS name; nodes are called no more
LOCAL_NAMES = frozenset(("localhost",))
HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def create_app(store: Store, authenticator: Authenticator, host_names: Collection[str] = ()) -> Starlette:
    """The pages as an ASGI application. `host_names` are the names, beside localhost and IP addresses, under which people reach it;
    compared without port and case."""
    pages = _Pages(store, authenticator)
    app = Starlette(
        routes=[
            Route("/", pages.incidents),
            Route("/incidents/{id}", pages.incident),
            Route("/style.css", pages.style),
        ],
        exception_handlers={HTTPException: pages.refusal},
    )
    names = LOCAL_NAMES | {name.lower() for name in host_names}
    app.add_middleware(_Guard, names=names)
    return app


class _Pages:
    """The three pages."""

    def __init__(self, store: Store, authenticator: Authenticator) -> None:
        self._store = store
        self._authenticator = authenticator
        self._templates = Environment(
            loader=PackageLoader("aggregator"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._style = (resources.files("aggregator") / "templates" / "style.css").read_bytes()

    async def incidents(self, request: Request) -> Response:
        """The newest incidents first."""
        self._admit(request)
        node = request.query_params.get("node", "").strip()[:MAX_NAME]
        open_only = request.query_params.get("open") == "1"
        before = _before(request.query_params.get("before", ""))
        query = partial(
            queries.list_incidents, node=node, include_resolved=not open_only, before=before, limit=PAGE_SIZE + 1
        )
        found = await self._store.read(query)
        shown, more = found[:PAGE_SIZE], len(found) > PAGE_SIZE
        rows = [
            {
                "description": describe(incident, assessment),
                "subject": subject(incident),
                "resolved": incident.state is IncidentState.RESOLVED,
            }
            for incident, assessment in shown
        ]
        older = _older(shown[-1][0], node, open_only) if more else ""
        return self._page("incidents.html", rows=rows, node=node, open_only=open_only, before=before, older=older)

    async def incident(self, request: Request) -> Response:
        """One incident, whole."""
        self._admit(request)
        found = await self._store.read(partial(queries.get_incident, incident_id=request.path_params["id"]))
        if found is None:
            raise HTTPException(404, "There is no incident with this id. It may be older than what is kept.")
        return self._page("incident.html", about=describe(*found), subject=subject(found[0]))

    async def style(self, request: Request) -> Response:
        """The style sheet: the same for everyone, and so for nobody in particular."""
        return Response(self._style, media_type="text/css")

    async def refusal(self, request: Request, error: Exception) -> Response:
        """What was wrong with a request, on a page."""
        assert isinstance(error, HTTPException)
        headings = {400: "Cannot read this address", 401: "Who are you?", 403: "Not for you", 404: "Not found"}
        heading = headings.get(error.status_code, "This does not work")
        return self._page("message.html", error.status_code, error.headers, heading=heading, text=error.detail)

    def _admit(self, request: Request) -> None:
        try:
            self._authenticator.admit_reader(request.headers.get("authorization"))
        except Unauthenticated as error:
            raise HTTPException(401, str(error), {"www-authenticate": "Bearer"}) from error
        except Forbidden as error:
            raise HTTPException(403, str(error)) from error

    def _page(
        self, template: str, status: int = 200, headers: Mapping[str, str] | None = None, **values: object
    ) -> Response:
        text = self._templates.get_template(template).render(values)
        return HTMLResponse(text, status, headers)


class _Guard:
    """Refuses foreign host names, and sets the headers that every answer carries."""

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                guarding = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *guarding]}
            await send(message)

        if scope["type"] != "http":
            return
        if not self._is_ours(Request(scope).headers.get("host", "")):
            refusal = Response("This server is not known under that name.\n", 421, media_type="text/plain")
            await refusal(scope, receive, send_guarded)
            return
        await self._app(scope, receive, send_guarded)

    def _is_ours(self, host: str) -> bool:
        """An IP address cannot be pointed elsewhere by a foreign name server, so any of them may be ours."""
        name = host[1 : host.find("]")] if host.startswith("[") else host.rpartition(":")[0] or host
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name.lower().rstrip(".") in self._names
        return True


def _before(text: str) -> tuple[int, str] | None:
    """Where the page before ended: "opened_us,id"."""
    if not text:
        return None
    opened, comma, incident_id = text.partition(",")
    if not comma or not opened.isdecimal() or len(opened) > 18:
        raise HTTPException(400, "The link's “before” is damaged; start again from the first page.")
    return int(opened), incident_id


def _older(last: Incident, node: str, open_only: bool) -> str:
    asked = {"before": f"{last.opened_us},{last.id}", "node": node, "open": "1" if open_only else ""}
    return "/?" + urlencode({name: value for name, value in asked.items() if value})
