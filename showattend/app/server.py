"""The server of the page and of `/caption`, reduced to what these need."""

import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modeling_showattend import ShowAttendForConditionalGeneration, ShowAttendProcessor

from .page import build_page, look
from .uploads import MAX_BYTES


@contextmanager
def serving(
    model: ShowAttendForConditionalGeneration,
    processor: ShowAttendProcessor,
    examples: Sequence[Path] = (),
    host: str = "127.0.0.1",
    port: int = 7860,
) -> Iterator[str]:
    """Serve the page until the block ends, and yield its URL. Uploads go to a temporary folder.

    Args:
        examples: Images to choose from.
        host: 127.0.0.1 is reachable from this machine alone, 0.0.0.0 from wherever the network allows.
    """
    with tempfile.TemporaryDirectory(prefix="showattend-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads  # Gradio's own is shared by all its apps
        page = build_page(model, processor, examples)
        try:
            _, url, _ = page.launch(
                server_name=host,
                server_port=port,
                share=False,
                allowed_paths=[str(path.resolve()) for path in examples],
                max_file_size=MAX_BYTES,
                app_kwargs={"middleware": [Middleware(OnlyThisPage, uploads=Path(uploads))]},
                run_history=False,
                enable_monitoring=False,
                mcp_server=False,
                ssr_mode=False,
                pwa=False,
                i18n=gr.I18n(en={"common.complete": "Done"}),  # which Gradio announces without having a text for it
                quiet=True,
                prevent_thread_lock=True,
                **look(),
            )
        except (OSError, OverflowError) as error:
            raise OSError(
                f"{host}:{port} cannot be opened: the port is taken, or this machine has no such address or port."
            ) from error
        try:
            yield url
        finally:
            page.close(verbose=False)


class OnlyThisPage:
    """Refuses what the page does not need.

    Gradio's server can also fetch URLs and proxy requests. The files of a request must be uploads, not URLs or other
    files of this machine.
    """

    routes = re.compile(
        r"/(config|theme\.css|favicon\.ico|manifest\.json|(assets|static|svelte)/.*"
        r"|gradio_api/(info|startup-events|upload|upload_progress|queue/(join|data)|heartbeat/\w+"
        r"|file=(?!\w+:/).*))?"
    )

    def __init__(self, app: ASGIApp, uploads: Path) -> None:
        self.app = app
        self.uploads = uploads.resolve()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif not self.routes.fullmatch(scope["path"]):
            await PlainTextResponse("There is nothing here.", 404)(scope, receive, send)
        elif not scope["path"].endswith("/queue/join"):
            await self.app(scope, receive, send)
        else:
            body = await Request(scope, receive).body()
            try:
                allowed = self._uploads_alone(json.loads(body))
            except ValueError:
                allowed = False
            if not allowed:
                await PlainTextResponse("A photo must be uploaded.", 403)(scope, receive, send)
                return

            async def replay() -> Message:
                return {"type": "http.request", "body": body, "more_body": False}

            await self.app(scope, replay, send)

    def _uploads_alone(self, data: Any) -> bool:
        if isinstance(data, list):
            return all(map(self._uploads_alone, data))
        if isinstance(data, dict):
            path = data.get("path", self.uploads)
            is_upload = isinstance(path, str | Path) and Path(path).resolve().is_relative_to(self.uploads)
            return is_upload and all(map(self._uploads_alone, data.values()))
        return True
