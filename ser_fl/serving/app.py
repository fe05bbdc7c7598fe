"""The page and its two questions, for this machine: what asks from another site, or under another name, is refused;
clips are bounded, never kept and never written down.
"""

import asyncio
import json
import secrets
import socket
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ser_fl.errors import UserError
from ser_fl.models.emotion_model import EmotionModel
from ser_fl.prediction import SYNTHETIC_NOTE
from ser_fl.serving.hearing import LONGEST_S, attacked, heard

if TYPE_CHECKING:
    from fastapi import FastAPI

LARGEST_BYTES = 16_000_000
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_PAGE = Path(__file__).with_name("page.html")


def check_installed() -> None:
    """Refuse (`UserError`) to serve without the packages."""
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"ser-fl serve needs {error.name}: pip install 'ser-fl[serve]'") from None


def build_app(model: EmotionModel, name: str, hosts: Collection[str] | None) -> "FastAPI":
    """The application for one model. ``hosts`` are the values of a Host header that are answered, with their port; None
    for any, where the user exposes the page.
    """
    from fastapi import FastAPI, Request, Response
    from fastapi.responses import HTMLResponse, JSONResponse
    from starlette.concurrency import run_in_threadpool

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    one_at_a_time = asyncio.Lock()

    def refused(status: int, reason: str) -> JSONResponse:
        return JSONResponse({"error": reason}, status)

    @app.middleware("http")
    async def guard(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        site = request.headers.get("sec-fetch-site", "none")
        if hosts is not None and host not in hosts:
            response: Response = refused(421, "this page answers to its own address only")
        elif origin not in (None, f"http://{host}") or (
            request.method == "POST" and site not in ("same-origin", "none")
        ):
            response = refused(403, "another site asks: this page answers itself only")
        else:
            response = await answer(request)
        response.headers.setdefault("Content-Security-Policy", "default-src 'none'")
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        response.headers["Cache-Control"] = "no-store"
        return response

    @app.get("/")
    def page() -> Response:
        nonce = secrets.token_urlsafe(16)
        told = {
            "name": name,
            "classes": model.classes,
            "note": SYNTHETIC_NOTE if model.synthetic else "",
            "mean": model.by_speaker and model.scale is None,
            "longest_s": LONGEST_S,
            "largest_bytes": LARGEST_BYTES,
        }
        facts = json.dumps(told).replace("<", "\\u003c")
        text = _PAGE.read_text(encoding="utf-8").replace("{{nonce}}", nonce).replace("{{facts}}", facts)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; media-src blob:; "
            "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return HTMLResponse(text, headers={"Content-Security-Policy": policy})

    async def asked(request: Request, question: Callable[[bytes], dict[str, Any]]) -> Response:
        content = bytearray()
        async for part in request.stream():
            content += part
            if len(content) > LARGEST_BYTES:
                return refused(413, f"a clip must have at most {LARGEST_BYTES / 1e6:g} MB")
        try:
            async with one_at_a_time:
                return JSONResponse(await run_in_threadpool(question, bytes(content)))
        except UserError as error:
            return refused(422, str(error))

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        return await asked(request, lambda content: heard(content, model))

    @app.post("/attack")
    async def attack(request: Request, snr_db: float) -> Response:
        return await asked(request, lambda content: attacked(content, snr_db, model))

    return app


def serve(model: EmotionModel, name: str, host: str, port: int, *, exposed: bool, tell: Callable[[str], None]) -> None:
    """Serve until interrupted. Port 0 is a free one.

    Raises:
        UserError: a host other than the loopback's that is not to be ``exposed``, or a port that is taken.
    """
    check_installed()
    if host not in LOOPBACK and not exposed:
        raise UserError(
            f"host must be one of {', '.join(LOOPBACK)}, got {host}: anybody there could ask; exposed=true says that "
            "this is meant"
        )
    import uvicorn

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except (OSError, OverflowError) as error:
            raise UserError(f"cannot listen on {host}, port {port}: {error}; port=0 takes a free one") from None
        port = listening.getsockname()[1]
        hosts = None if exposed else {f"{each}:{port}" for each in ("127.0.0.1", "localhost", "[::1]")}
        server = uvicorn.Server(uvicorn.Config(build_app(model, name, hosts), log_level="warning", server_header=False))
        tell(f"http://{f'[{host}]' if ':' in host else host}:{port}/ (Ctrl-C ends it)")
        server.run(sockets=[listening])
