"""A hub on this machine."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
# A hub names larger files by sha256, and smaller ones as git does.
SMALL_BYTES = 1 << 16


class Hub:
    """A server that speaks the part of the hub's file API that a download of a model or a data set needs."""

    def __init__(self, repo, files, revisions=(), kind="model"):
        self.files = dict(files)
        self.revisions = {"main": COMMIT, COMMIT: COMMIT, **dict(revisions)}
        self.listing_path = f"/api/{kind}s/{repo}/revision/"
        self.resolve_path = f"/{repo}/resolve/" if kind == "model" else f"/datasets/{repo}/resolve/"
        self.requests = []
        self.cut_after = []  # bytes after which the next downloads of large files break off
        self.ignore_range = False
        self.status = 200
        hub_server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                hub_server.answer(self)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, request):
        path = request.path.partition("?")[0]
        self.requests.append((path, request.headers.get("Range")))
        listing, resolve = self.listing_path, self.resolve_path
        if self.status != 200:
            self.send(request, self.status, b"")
        elif path.startswith(listing):
            revision = path.removeprefix(listing)
            if revision not in self.revisions:
                self.send(request, 404, b"", {"X-Error-Code": "RevisionNotFound"})
            else:
                self.send(request, 200, json.dumps(self.listing(self.revisions[revision])).encode())
        elif path.startswith(resolve):
            self.content(request, path.removeprefix(resolve).partition("/")[2])
        else:
            self.send(request, 404, b"", {"X-Error-Code": "RepoNotFound"})

    def listing(self, commit):
        items = []
        for name, data in self.files.items():
            item = {"rfilename": name, "size": len(data)}
            item["blobId"] = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
            if len(data) > SMALL_BYTES:
                item["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
            items.append(item)
        return {"sha": commit, "siblings": items}

    def content(self, request, name):
        data, start = self.files[name], 0
        asked = request.headers.get("Range")
        if asked and not self.ignore_range:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(data) - start))
        request.end_headers()
        if len(data) > SMALL_BYTES and self.cut_after:
            request.wfile.write(data[start : start + self.cut_after.pop(0)])
            request.wfile.flush()
            request.connection.shutdown(2)
            return
        request.wfile.write(data[start:])

    @staticmethod
    def send(request, status, body, headers=()):
        request.send_response(status)
        for name, value in dict(headers).items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def downloads(self):
        return [(path, asked) for path, asked in self.requests if "/resolve/" in path]
