"""A file server on loopback whose answers tests choose, with ranges, redirects, breaks and errors."""

import contextlib
import http.server
import re
import threading
import time


class Files(http.server.ThreadingHTTPServer):
    """Serves `content` by path.

    Attributes:
        content: {path: bytes}.
        redirects: {path: target}.
        status: {path: status of every answer}.
        headers: {path: further headers}.
        breaks: {path: number of bytes after which the next answers end early}, a list for one answer each.
        ranges: False to ignore requests for a part.
        shift: bytes by which the named start of a part is wrong.
        delay: seconds before a body is sent.
        requests: (path, Range header) of each request, in order.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content, self.redirects, self.status, self.headers, self.breaks = {}, {}, {}, {}, {}
        self.ranges, self.shift, self.delay, self.requests = True, 0, 0.0, []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """Prints nothing: tests break connections."""


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        files, path = self.server, self.path.partition("?")[0]
        files.requests.append((path, self.headers.get("Range")))
        if path in files.redirects:
            return self._answer(302, b"", {"Location": files.redirects[path], **files.headers.get(path, {})})
        if path in files.status or path not in files.content:
            return self._answer(files.status.get(path, 404), b"no such file", {})
        content, headers = files.content[path], {"ETag": '"one"', **files.headers.get(path, {})}
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if start and files.ranges and self.headers.get("If-Range") == headers["ETag"]:
            first = int(start[1])
            if first >= len(content):
                return self._answer(416, b"", {})
            headers["Content-Range"] = f"bytes {first + files.shift}-{len(content) - 1}/{len(content)}"
            return self._answer(206, content[first:], headers)
        return self._answer(200, content, headers)

    def _answer(self, status, body, headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        time.sleep(self.server.delay)
        breaks = self.server.breaks.get(self.path.partition("?")[0])
        self.wfile.write(body[: breaks.pop(0)] if breaks else body)
        self.close_connection = True

    def log_message(self, *_):
        """Prints nothing."""


@contextlib.contextmanager
def serving():
    """Yields a running server, and stops it at the end."""
    with Files() as files:
        thread = threading.Thread(target=files.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield files
        finally:
            files.shutdown()
            thread.join()
