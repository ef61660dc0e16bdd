"""The page of `cai review` and what it asks for. Only who has the address may ask."""

import secrets
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from cai.data.verdicts import CHOICES, Kind
from cai.digest import JsonObject
from cai.errors import CaiError
from cai.report.page import TEMPLATES as REPORT_TEMPLATES
from cai.review.queue import Item, Queue
from cai.review.records import PAGE, RecordKind, Records
from cai.review.verdict_file import VerdictFile

TEMPLATES = Path(__file__).parent / "templates"

TOKEN_HEADER = "x-review-token"  # noqa: S105 - a header's name

LONGEST_BODY = 1 << 20  # bytes of a request


class Guard:
    """Refuses with 403 whatever does not come from the page itself.

    A request must name this server as its host (else a foreign name that resolves to 127.0.0.1
    could reach it), have no foreign origin, and hold the token: in the address of the page, in a
    header else, which no other page can send.
    """

    def __init__(self, app: ASGIApp, token: str, port: int):
        self.app, self.token = app, token
        self.hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        if problem := self._problem(request):
            await PlainTextResponse(problem, 403)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _problem(self, request: Request) -> str | None:
        if request.headers.get("host", "") not in self.hosts:
            return "another host"
        origin = request.headers.get("origin")
        if origin is not None and origin.removeprefix("http://") not in self.hosts:
            return "another origin"
        is_page = request.url.path == "/"
        token = request.query_params.get("token") if is_page else request.headers.get(TOKEN_HEADER)
        if not secrets.compare_digest((token or "").encode(), self.token.encode()):
            return "no token, or that of an earlier start; open the address that cai printed"
        return None


class Review:
    """What a person judges, and where it is kept."""

    def __init__(self, queues: Mapping[Kind, Queue], verdicts: VerdictFile):
        self.queues, self.verdicts = queues, verdicts
        self.items: dict[str, tuple[Queue, Item]] = {
            item.subject: (queue, item) for queue in queues.values() for item in queue.items
        }

    def card(self, request: Request) -> JSONResponse:
        """The item at `place` among those of a kind and a principle; else the first to be judged.

        `card` is null behind the last.
        """
        queue = self._queue(request.query_params.get("kind", ""))
        items = queue.select(request.query_params.get("principle", ""))
        is_judged = [item.subject in self.verdicts for item in items]
        place = _whole_number(request, "place")
        if place is None:
            place = is_judged.index(False) if False in is_judged else len(items)
        place = min(place, len(items))
        reply: JsonObject = {"kind": queue.kind, "place": place, "card": None}
        reply |= {"total": len(items), "judged": sum(is_judged), "principles": queue.principles}
        if place < len(items):
            line = self.verdicts.verdict(items[place].subject) or {}
            word = {"verdict": line.get("verdict"), "edited": line.get("edited")}
            reply["card"] = queue.card(items[place]) | word
        return JSONResponse(reply)

    def _queue(self, kind: str) -> Queue:
        for name, queue in self.queues.items():
            if name == kind:
                return queue
        raise HTTPException(400, f"no items of the kind '{kind}'")

    async def judge(self, request: Request) -> JSONResponse:
        """Saves a verdict. The reply says that it is on the disk."""
        body = await _body(request)
        subject, choice, edited = (body.get(name) for name in ("subject", "verdict", "edited"))
        if not isinstance(subject, str) or subject not in self.items:
            raise HTTPException(400, "no such item")
        queue, item = self.items[subject]
        if choice not in CHOICES[queue.kind]:
            raise HTTPException(400, f"a verdict is one of {', '.join(CHOICES[queue.kind])}")
        line = queue.line(item) | {"verdict": choice}
        if queue.kind == "revision":
            line["edited"] = edited if choice == "edit" else None
        if choice == "edit" and not (isinstance(edited, str) and edited.strip()):
            raise HTTPException(400, "an edited text must have words")
        if choice == "edit" and edited == line["revision"]:
            raise HTTPException(400, "the text is as it was; it may be good")
        self.verdicts.add(subject, line)
        return JSONResponse({"saved": True})

    async def undo(self, request: Request) -> JSONResponse:
        """Takes back the last verdict. Says where the item is among all of its kind."""
        subject = self.verdicts.undo()
        if subject is None:
            raise HTTPException(400, "there is nothing to take back")
        if subject not in self.items:  # of another run: the file is shared
            return JSONResponse({"kind": None, "place": None})
        queue, item = self.items[subject]
        return JSONResponse({"kind": queue.kind, "place": queue.items.index(item)})

    def routes(self) -> list[Route]:
        return [
            Route("/api/card", self.card),
            Route("/api/judge", self.judge, methods=["POST"]),
            Route("/api/undo", self.undo, methods=["POST"]),
        ]


class View:
    """All records of a run, to read."""

    def __init__(self, records: Mapping[RecordKind, Records]):
        self.records = records

    def page(self, request: Request) -> JSONResponse:
        """The records of a kind that fit `query` and filters, from the number `start`."""
        texts = request.query_params
        records = next(
            (self.records[kind] for kind in self.records if kind == texts.get("kind")), None
        )
        if records is None:
            raise HTTPException(400, "no records of this kind")
        start = _whole_number(request, "start") or 0
        filters = {name: texts[name] for name in records.facets if texts.get(name)}
        total, rows = records.page(texts.get("query", ""), filters, start)
        reply = {"total": total, "start": start, "page": PAGE, "records": rows}
        return JSONResponse(reply | {"facets": records.facets})

    def routes(self) -> list[Route]:
        return [Route("/api/records", self.page)]


def make_app(pages: Review | View, token: str, port: int, facts: Mapping[str, str]) -> Starlette:
    """The server of one page. `facts`: what stands at its head; `run` among them."""
    template = "view.html.j2" if isinstance(pages, View) else "review.html.j2"
    environment = Environment(
        loader=FileSystemLoader([TEMPLATES, REPORT_TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    kinds = _counts(pages)

    def page(request: Request) -> HTMLResponse:
        nonce = secrets.token_urlsafe(16)
        html = environment.get_template(template).render(nonce=nonce, facts=facts, kinds=kinds)
        return HTMLResponse(html, headers=_page_headers(nonce))

    def refused(request: Request, error: Exception) -> JSONResponse:
        status = error.status_code if isinstance(error, HTTPException) else 500
        detail = error.detail if isinstance(error, HTTPException) else str(error)
        return JSONResponse({"problem": detail}, status)

    return Starlette(
        routes=[Route("/", page), *pages.routes()],
        middleware=[Middleware(Guard, token=token, port=port)],
        exception_handlers={HTTPException: refused, CaiError: refused},
    )


def _counts(pages: Review | View) -> dict[str, int]:
    if isinstance(pages, View):
        return {kind: records.count for kind, records in pages.records.items()}
    return {kind: len(queue.items) for kind, queue in pages.queues.items()}


def _page_headers(nonce: str) -> dict[str, str]:
    """Nothing but this page's own script and style runs, and nothing leaves for elsewhere."""
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return {
        "Content-Security-Policy": policy,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-store",
    }


async def _body(request: Request) -> JsonObject:
    if int(request.headers.get("content-length") or LONGEST_BODY + 1) > LONGEST_BODY:
        raise HTTPException(413, "too long")
    try:
        body = await request.json()
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise HTTPException(400, "expected a JSON object")
    return body


def _whole_number(request: Request, name: str) -> int | None:
    text = request.query_params.get(name, "")
    return int(text) if text.isdecimal() and len(text) < 10 else None
