"""A stand-in for the hub of Hugging Face on this machine: what its client asks for, in memory.

Repositories are made; files come in commits, as they are or, weights, by LFS; files and lists of
them are read at a revision. Whoever writes needs the token.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "secret-token"
ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


class Hub:
    """Repositories: by revision the files, each with its content and whether it is of LFS."""

    def __init__(self):
        self.url = ""
        self.repos, self.heads, self.objects, self.strange = {}, {}, {}, []

    def commit(self, repo, files):
        """A revision with more files."""
        held = {**self.files(repo, "main"), **files}
        text = repr(sorted((name, hashlib.sha256(f[0]).hexdigest()) for name, f in held.items()))
        revision = hashlib.sha1(text.encode()).hexdigest()
        self.repos[repo][revision], self.heads[repo] = held, revision
        return revision

    def files(self, repo, revision):
        """The files of a revision, of none for a new repository."""
        return self.repos[repo].get(self.heads.get(repo) if revision == "main" else revision, {})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def answer(self, value=None, status=200, headers=()):
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        if not any(name == "Content-Length" for name, _ in headers):
            self.send_header("Content-Length", str(len(content)))
        for name, text in headers:
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def handle_one(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        for pattern, method, write, act in WAYS:
            found = re.fullmatch(pattern, path)
            if found and self.command in method:
                if write and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    return self.answer({"error": "no token"}, 401)
                return act(self, body, *found.groups())
        self.hub.strange.append(f"{self.command} {self.path}")
        return self.answer({"error": "not found"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = handle_one

    def create(self, body):
        asked = json.loads(body)
        repo = "/".join(filter(None, (asked.get("organization"), asked["name"])))
        if repo not in self.hub.repos:
            self.hub.repos[repo] = {}
            self.hub.commit(repo, {".gitattributes": (ATTRIBUTES, False)})
        self.answer({"url": f"{self.hub.url}/{repo}", "id": repo, "name": repo})

    def preupload(self, body, repo, _):
        files = [each["path"] for each in json.loads(body)["files"]]
        mode = {True: "lfs", False: "regular"}
        told = [
            {"path": f, "uploadMode": mode[f.endswith(".safetensors")], "shouldIgnore": False}
            for f in files
        ]
        self.answer({"files": told})

    def batch(self, body, repo):
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{each['oid']}"}}}
            for each in json.loads(body)["objects"]
        ]
        kind = (("Content-Type", "application/vnd.git-lfs+json"),)
        self.answer({"transfer": "basic", "objects": objects}, headers=kind)

    def store(self, body, digest):
        assert hashlib.sha256(body).hexdigest() == digest
        self.hub.objects[digest] = body
        self.answer({})

    def commit(self, body, repo, _):
        files = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = (base64.b64decode(value["content"]), False)
            elif line["key"] == "lfsFile":
                files[value["path"]] = (self.hub.objects[value["oid"]], True)
        revision = self.hub.commit(repo, files)
        url = f"{self.hub.url}/{repo}/commit/{revision}"
        self.answer({"success": True, "commitOid": revision, "commitUrl": url, "hookOutput": ""})

    def info(self, _, repo, revision):
        if repo not in self.hub.repos:
            return self.answer({"error": "none"}, 404, (("X-Error-Code", "RepoNotFound"),))
        revision = self.hub.heads[repo] if revision in (None, "main") else revision
        names = [{"rfilename": name} for name in self.hub.files(repo, revision)]
        return self.answer(
            {"id": repo, "modelId": repo, "sha": revision, "siblings": names, "private": False}
        )

    def tree(self, _, repo, revision):
        files = self.hub.files(repo, revision)
        told = [
            {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
            for name, (content, _) in files.items()
        ]
        self.answer(told)

    def resolve(self, _, repo, revision, name):
        if repo not in self.hub.repos:
            return self.answer({"error": "none"}, 404, (("X-Error-Code", "RepoNotFound"),))
        revision = self.hub.heads[repo] if revision == "main" else revision
        found = self.hub.files(repo, revision).get(name)
        head = ("X-Repo-Commit", revision)
        if found is None:
            return self.answer({"error": "none"}, 404, (head, ("X-Error-Code", "EntryNotFound")))
        content, large = found
        digest = (hashlib.sha256 if large else hashlib.sha1)(content).hexdigest()
        told = [head, ("ETag", f'"{digest}"'), ("Content-Length", str(len(content)))]
        return self.answer(content, headers=told)


REPO = r"([^/]+/[^/]+?)"
WAYS = [
    (r"/api/repos/create", "POST", True, Handler.create),
    (r"/api/validate-yaml", "POST", False, lambda self, _: self.answer({"errors": []})),
    (rf"/api/models/{REPO}/preupload/([^/]+)", "POST", True, Handler.preupload),
    (rf"/{REPO}\.git/info/lfs/objects/batch", "POST", True, Handler.batch),
    (r"/lfs/([0-9a-f]+)", "PUT", False, Handler.store),
    (rf"/api/models/{REPO}/commit/([^/]+)", "POST", True, Handler.commit),
    (rf"/api/models/{REPO}/tree/([^/]+)", "GET", False, Handler.tree),
    (rf"/api/models/{REPO}(?:/revision/([^/]+))?", "GET", False, Handler.info),
    (rf"/{REPO}/resolve/([^/]+)/(.+)", ("GET", "HEAD"), False, Handler.resolve),
]


@contextmanager
def running_hub():
    """A hub that runs while within."""
    hub = Hub()
    handler = type("Bound", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
