"""How the demo's page is served: with nothing of other hosts, and with bounds to what it stores."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from ..utils.cli import UsageError

__all__ = ["Store", "import_gradio", "launch_options"]

_CSS = """
.result img {image-rendering: pixelated; width: 100%; object-fit: contain}
.chips {margin: 4px 0 10px}
.chip {margin-right: 14px; white-space: nowrap}
.chip i {display: inline-block; width: 14px; height: 14px; margin-right: 5px; vertical-align: -2px}
.scores td, .scores th {padding: 3px 14px !important; text-align: left}
.caption input, .caption textarea {border: none !important; font-weight: 600}
"""

# Uploads at a time, and what a request has besides the file.
_UPLOADS, _MARGIN = 4, 2**20


class Store:
    """The folder of a page's uploads and pictures. Its oldest files go where there is no room for new ones.

    Args:
        folder: An empty folder of the page's own.
        upload: The largest upload, in bytes.
        limit: The most that the folder may hold, in bytes.

    Raises:
        UsageError: If the limit leaves no room for a few uploads at a time.
    """

    def __init__(self, folder: Path, upload: int, limit: int) -> None:
        least = (_UPLOADS + 1) * (upload + _MARGIN)
        if limit < least:
            raise UsageError(f"--max-disk must be at least {-(-least // 2**20)} for these uploads")
        self.folder, self.request, self.limit = folder, upload + _MARGIN, limit
        self._kept: frozenset[Path] = frozenset()

    def keep(self) -> None:
        """Keep what is there now, such as the examples of the page."""
        self._kept = frozenset(path for path in self.folder.rglob("*") if path.is_file())

    def make_room(self, size: int) -> None:
        """Remove the oldest files until so many bytes fit in."""
        files = []
        for path in self.folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # others remove files too
                if path.is_file():
                    files.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        held = sum(length for _, length, _ in files)
        for _, length, path in sorted(files):
            if held + size <= self.limit:
                return
            if path not in self._kept:
                path.unlink(missing_ok=True)
                held -= length


def launch_options(host: str, port: int | None, store: Store) -> dict[str, Any]:
    """Return what ``Blocks.launch`` is to be called with: no tunnel, no telemetry, limited uploads.

    Args:
        host: Address to listen on.
        port: Port, or None for a free one from 7860.
        store: Where uploads go.
    """
    gr = import_gradio()
    from starlette.middleware import Middleware

    return dict(
        server_name=host,
        server_port=port,
        max_file_size=store.request - _MARGIN,
        share=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        footer_links=[],
        quiet=True,
        theme=gr.themes.Default(font="system-ui", font_mono="ui-monospace"),
        css=_CSS,
        app_kwargs=dict(middleware=[Middleware(_OwnResources), Middleware(_LimitedUploads, store=store)]),
    )


class _OwnResources:
    """A middleware that has the browser load nothing from other hosts.

    Gradio's page needs nothing of them; with this it stays so, whatever a release adds.
    """

    policy = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", self.policy)]
            await send(message)

        await self.app(scope, receive, send_with_policy)


class _LimitedUploads:
    """A middleware that makes room for uploads, and takes a few at a time and no long ones.

    Gradio limits each file, but not how many a request brings, nor what all requests leave.
    """

    def __init__(self, app: Any, store: Store) -> None:
        self.app, self.store, self.running = app, store, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.exceptions import HTTPException
        from starlette.responses import PlainTextResponse

        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].endswith("/upload"):
            await self.app(scope, receive, send)
            return
        if self.running >= _UPLOADS:
            await PlainTextResponse("too many uploads at a time", 503)(scope, receive, send)
            return
        received = 0

        async def receive_part() -> Any:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.store.request:
                raise HTTPException(413, "too long an upload")
            return message

        self.running += 1
        try:
            self.store.make_room(self.running * self.store.request)
            await self.app(scope, receive_part, send)
        finally:
            self.running -= 1


def import_gradio() -> Any:
    """Import Gradio with its telemetry off, which it decides on import.

    Raises:
        UsageError: If it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio
    except ImportError as error:
        raise UsageError("the demo needs Gradio: pip install 'pixeldcl-plugin[demo]'") from error
    return gradio
