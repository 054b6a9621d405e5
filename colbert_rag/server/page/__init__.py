"""A page to try the server by: three files, and nothing from another host."""

from __future__ import annotations

from importlib.resources import files

from fastapi import FastAPI
from fastapi.responses import Response

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""No script runs but the page's own file. Explanations bring a style sheet and images with them."""

FILES = {"page.js": "text/javascript", "page.css": "text/css"}


def add_page(app: FastAPI, *, index: bool, locked: bool) -> None:
    """Answer `/` with the page.

    Args:
        app: Gets the paths.
        index: Whether there is an index to search.
        locked: Whether clients need a key.
    """
    folder = files(__name__)
    page = (folder / "page.html").read_text(encoding="utf-8")
    page = page.replace("{index}", str(index).lower()).replace("{locked}", str(locked).lower())

    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def show() -> Response:
        return Response(page, media_type="text/html", headers={"Content-Security-Policy": POLICY})

    for name, kind in FILES.items():
        content = (folder / name).read_text(encoding="utf-8")

        async def give(content: str = content, kind: str = kind) -> Response:
            return Response(content, media_type=kind)

        app.get(f"/{name}", include_in_schema=False)(give)
