"""The web page at /: files of the package, sent with a policy under which nothing but they can run.

The page asks the server's own API. It loads nothing from elsewhere, and a policy (Content-Security-Policy) forbids it
to, so that no answer of a model could, even if the page made a mistake with it.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import Response

from shoestring.serve.http.errors import ApiError

FOLDER = Path(__file__).parent / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}

router = APIRouter(include_in_schema=False)


def is_of_page(path: str) -> bool:
    """Whether a path is the page's, which holds no secret and asks for no key."""
    return path == "/" or path.startswith("/page/")


@router.get("/")
async def index() -> Response:
    return _sent("index.html")


@router.get("/page/{name}")
async def part(name: str) -> Response:
    return _sent(name)


def _sent(name: str) -> Response:
    file = FOLDER / name
    if file.parent != FOLDER or file.suffix not in _TYPES or not file.is_file():
        raise ApiError(404, f"there is no {name!r:.100}")
    return Response(file.read_bytes(), headers=_HEADERS, media_type=_TYPES[file.suffix])
