"""As much of the Hugging Face hub as an upload needs, on loopback."""

import base64
import http.server
import json
import threading
from contextlib import contextmanager

TOKEN = "hf_test"


class HubServer(http.server.ThreadingHTTPServer):
    """Remembers repositories (private or not) and the files of their commits."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.private = {}
        self.files = {}
        self.tokens = set()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.tokens.add(self.headers.get("Authorization"))
        place = self.path.split("?")[0].removeprefix("/api/").split("/")
        if place == ["repos", "create"]:
            return self._create(json.loads(body))
        if place == ["validate-yaml"]:
            return self._answer({"errors": [], "warnings": []})
        repo, action = "/".join(place[:3]), place[3]
        if action == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return self._answer({"files": files})
        assert action == "commit", self.path
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                value = entry["value"]
                self.server.files.setdefault(repo, {})[value["path"]] = base64.b64decode(value["content"])
        return self._answer({"commitUrl": f"{self.server.url}/{repo}/commit/1", "commitOid": "1" * 40})

    def do_GET(self):
        repo = "/".join(self.path.split("?")[0].removeprefix("/api/").split("/")[:3])
        if repo not in self.server.private:
            return self._answer({"error": "Repository not found"}, 404, "RepoNotFound")
        name = repo.split("/", 1)[1]
        return self._answer(
            {"id": name, "private": self.server.private[repo], "siblings": [], "sha": "0" * 40}
        )

    do_HEAD = do_GET

    def _create(self, wanted):
        name = f"{wanted['organization']}/{wanted['name']}"
        repo = f"{wanted.get('type') or 'model'}s/{name}"
        exists = repo in self.server.private
        private = wanted.get("private", wanted.get("visibility") == "private")
        self.server.private.setdefault(repo, private)
        self._answer({"url": f"{self.server.url}/{repo}", "name": name}, 409 if exists else 200)

    def _answer(self, value, status=200, code=None):
        content = json.dumps(value).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@contextmanager
def hub_server():
    with HubServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
