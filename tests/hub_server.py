"""A hub on this machine."""

import base64
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

            do_POST = do_PUT = do_GET  # noqa: N815 (their names)

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


class UploadHub(Hub):
    """A hub that takes uploads: repositories, branches, large files by themselves, and commits."""

    def __init__(self, repo, token="hf_writer"):
        super().__init__(repo, {})
        self.repo, self.token = repo, token
        self.exists, self.private = False, None
        self.branches = {"main": {}}
        self.blobs = {}  # large files by sha256
        self.commits = []
        self.refuse_blobs_after = None  # large files that are taken before the hub breaks down

    def answer(self, request):
        method, path = request.command, request.path.partition("?")[0]
        self.requests.append((f"{method} {path}", None))
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if path.startswith("/lfs/"):
            return self.take_blob(request, path.removeprefix("/lfs/"), body)
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return self.send(request, 401, b'{"error": "Invalid username or password."}')
        routes = {
            "/api/repos/create": self.create,
            "/api/validate-yaml": lambda *_: (200, {"errors": [], "warnings": []}),
            f"/{self.repo}.git/info/lfs/objects/batch": self.batch,
        }
        for name in ("branch", "tree", "preupload", "commit"):
            prefix = f"/api/models/{self.repo}/{name}/"
            if path.startswith(prefix):
                status, data = getattr(self, name)(path.removeprefix(prefix), body)
                headers = {"X-Error-Code": data.pop("code")} if status == 404 else {}
                return self.send(request, status, json.dumps(data).encode(), headers)
        status, data = routes.get(path, lambda *_: (404, {}))(None, body)
        return self.send(request, status, json.dumps(data).encode())

    def create(self, _, body):
        asked = json.loads(body)
        taken, self.exists = self.exists, True
        if not taken:
            self.private = asked["visibility"] == "private"
        return (409 if taken else 200), {"url": f"{self.url}/{self.repo}", "name": asked["name"]}

    def branch(self, name, _):
        taken = name in self.branches
        self.branches.setdefault(name, dict(self.branches["main"]))
        return (409 if taken else 200), {}

    def tree(self, name, _):
        if name not in self.branches:
            return 404, {"code": "RevisionNotFound"}
        if not self.branches[name]:
            return 404, {"code": "EntryNotFound"}
        return 200, [self.entry(path, data) for path, data in self.branches[name].items()]

    @staticmethod
    def entry(path, data):
        item = {"type": "file", "path": path, "size": len(data)}
        item["oid"] = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
        if len(data) > SMALL_BYTES:
            digest = hashlib.sha256(data).hexdigest()
            item["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 134}
        return item

    def preupload(self, name, body):
        files = json.loads(body)["files"]
        modes = ["lfs" if item["size"] > SMALL_BYTES else "regular" for item in files]
        return 200, {
            "files": [
                {"path": item["path"], "uploadMode": mode, "shouldIgnore": False}
                for item, mode in zip(files, modes, strict=True)
            ]
        }

    def batch(self, _, body):
        objects = []
        for item in json.loads(body)["objects"]:
            known = item["oid"] in self.blobs
            actions = {} if known else {"actions": {"upload": {"href": f"{self.url}/lfs/{item['oid']}"}}}
            objects.append({**item, **actions})
        return 200, {"transfer": "basic", "objects": objects}

    def take_blob(self, request, digest, data):
        if self.refuse_blobs_after is not None and len(self.blobs) >= self.refuse_blobs_after:
            return self.send(request, 400, b'{"error": "out of order"}')
        assert hashlib.sha256(data).hexdigest() == digest
        self.blobs[digest] = data
        return self.send(request, 200, b"")

    def commit(self, name, body):
        files = dict(self.branches[name])
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                self.commits.append((name, value["summary"]))
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.blobs[value["oid"]]
        self.branches[name] = files
        oid = f"{len(self.commits):040x}"
        return 200, {"commitUrl": f"{self.url}/{self.repo}/commit/{oid}", "commitOid": oid, "hookOutput": ""}
