"""The admin process's HTTP: status, health and reload as JSON."""

from __future__ import annotations

import time

from aiohttp import web

from qmux.admin.model import as_json
from qmux.admin.requests import Requests
from qmux.admin.view import View

MAX_BODY_BYTES = 64 << 10
"""A request is a few words of JSON."""


def make_app(view: View, requests: Requests) -> web.Application:
    """``GET /v1/status``, ``POST /v1/reload``, ``GET /healthz``."""
    app = web.Application(client_max_size=MAX_BODY_BYTES)

    async def status(_: web.Request) -> web.Response:
        return web.json_response(as_json(view.status(time.monotonic())))

    async def healthz(_: web.Request) -> web.Response:
        healthy = view.is_healthy(time.monotonic())
        body: dict[str, object] = {"ok": healthy}
        if missing := view.not_connected():
            body["not_connected"] = missing
        return web.json_response(body, status=200 if healthy else 503)

    async def reload(request: web.Request) -> web.Response:
        try:
            body = await request.json()
            wanted = {name: bool(body.get(name, False)) for name in ("dry_run", "full")}
        except (ValueError, AttributeError, RecursionError):  # not JSON, JSON that is no object, or one too deep
            raise web.HTTPBadRequest(text='expected a JSON object: {"dry_run": false, "full": false}') from None
        reply = await requests.reload(dry_run=wanted["dry_run"], full=wanted["full"])
        return web.json_response({"ok": reply.ok, "lines": reply.lines, "exit_code": reply.exit_code})

    app.router.add_get("/v1/status", status)
    app.router.add_post("/v1/reload", reload)
    app.router.add_get("/healthz", healthz)
    return app
