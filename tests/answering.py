"""An HTTP server on this machine whose answers a test chooses."""

from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

Given = tuple[int, Sequence[tuple[str, str]], bytes]
"""Status, headers and body."""


class Answering:
    """A server from its making to `close`.

    Attributes:
        url: where it is.

    Args:
        answer: what it gives for a path; None to close the connection without a word.
    """

    def __init__(self, answer: Callable[[str], Given | None]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                given = answer(self.path)
                if given is None:
                    return
                status, headers, body = given
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
