"""A Hub on loopback that speaks the real one's protocol, so that its clients can be tested unmodified.

It keeps repositories in memory: every commit is the whole tree of its files. What it answers was read off the requests
of huggingface_hub, transformers and Trainer; what it does not know is 404.
"""

import base64
import dataclasses
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


TOKEN, OWNER = "hf_" + "LoopbackHubs" * 3, "ann"  # as long as real ones
LFS_FROM = 10_000  # bytes


@dataclasses.dataclass
class Repository:
    """Branches and tags by name; each names a commit, and a commit is its files."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)
    references: dict[str, str] = dataclasses.field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        sums = "".join(f"{path} {hashlib.sha1(content).hexdigest()}" for path, content in sorted(files.items()))
        name = hashlib.sha1(f"{len(self.commits)} {sums}".encode()).hexdigest()
        self.commits[name] = files
        self.references[branch] = name
        return name

    def resolve(self, revision: str) -> str | None:
        name = self.references.get(revision, revision)
        return name if name in self.commits else None


class Refused(Exception):
    """An answer that is an error: status and the Hub's own error code."""

    def __init__(self, status: int, code: str, message: str):
        super().__init__(message)
        self.status, self.code = status, code


class LoopbackHub:
    """Use as a context manager; `endpoint` is its address, and `breaks[pattern] = n` breaks the connection amid
    the next n requests to such a path."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.breaks: dict[str, int] = {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """What a revision holds."""
        repository = self.repositories[repo_id]
        return repository.commits[repository.references[revision]]


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        length = int(self.headers.get("Content-Length", 0))
        if self.breaks(path):
            self.rfile.read(length // 2)
            self.close_connection = True
            return self.connection.shutdown(socket.SHUT_RDWR)
        body = self.rfile.read(length)
        try:
            for method, pattern, answer in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in method.split():
                    return answer(self, body, **match.groupdict())
            raise Refused(404, "EntryNotFound", f"no {self.command} {path}")
        except Refused as refused:
            headers = {"X-Error-Code": refused.code, "X-Error-Message": str(refused)}
            self.answer(json.dumps({"error": str(refused)}).encode(), refused.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do

    def breaks(self, path: str) -> bool:
        for pattern, times in self.hub.breaks.items():
            if times > 0 and re.fullmatch(pattern, path):
                self.hub.breaks[pattern] -= 1
                return True
        return False

    def answer(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def answer_json(self, content: Any) -> None:
        self.answer(json.dumps(content).encode(), headers={"Content-Type": "application/json"})

    # ---- who asks, and for what

    def known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def require_owner(self) -> None:
        if not self.known():
            raise Refused(401, "Unauthorized", "Invalid username or password.")

    def repository(self, repo: str) -> Repository:
        found = self.hub.repositories.get(repo)
        if found is None or (found.private and not self.known()):
            raise Refused(404 if self.known() else 401, "RepoNotFound", "Repository not found")
        return found

    def revision(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]]:
        repository = self.repository(repo)
        name = repository.resolve(revision)
        if name is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return name, repository.commits[name]

    # ---- answers

    def whoami(self, body: bytes) -> None:
        self.require_owner()
        self.answer_json({"type": "user", "name": OWNER, "orgs": [], "auth": {"type": "access_token"}})

    def create(self, body: bytes) -> None:
        self.require_owner()
        asked = json.loads(body)
        repo = f"{asked.get('organization') or OWNER}/{asked['name']}"
        exists = repo in self.hub.repositories
        if not exists:
            self.hub.repositories[repo] = Repository(private=asked.get("visibility") == "private")
            self.hub.repositories[repo].commit("main", {".gitattributes": b""})
        answer = json.dumps({"url": f"{self.hub.endpoint}/{repo}", "name": repo, "error": "exists"}).encode()
        self.answer(answer, 409 if exists else 200)

    def validate(self, body: bytes) -> None:
        self.answer_json({"errors": [], "warnings": []})

    def preupload(self, body: bytes, repo: str, revision: str) -> None:
        self.require_owner()
        _, there = self.revision(repo, revision)
        answers = []
        for file in json.loads(body)["files"]:
            mode = "lfs" if file["size"] >= LFS_FROM else "regular"
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False})
            if file["path"] in there:
                answers[-1]["oid"] = _name(there[file["path"]])
        self.answer_json({"files": answers})

    def large_batch(self, body: bytes, repo: str) -> None:
        self.require_owner()
        objects = json.loads(body)["objects"]
        for each in objects:
            if each["oid"] not in self.hub.large_files:
                each["actions"] = {"upload": {"href": f"{self.hub.endpoint}/large/{each['oid']}"}}
        self.answer_json({"transfer": "basic", "objects": objects})

    def put_large(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refused(400, "BadContent", "the content is not what its name says")
        self.hub.large_files[oid] = body
        self.answer(b"")

    def commit(self, body: bytes, repo: str, revision: str) -> None:
        self.require_owner()
        _, files = self.revision(repo, revision)
        files = dict(files)
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large_files[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        name = self.repository(repo).commit(revision, files)
        self.answer_json(
            {"commitUrl": f"{self.hub.endpoint}/{repo}/commit/{name}", "commitOid": name, "success": True}
        )

    def branch(self, body: bytes, repo: str, branch: str) -> None:
        self.require_owner()
        start = json.loads(body or b"{}").get("startingPoint", "main")
        self.reference(repo, branch, start)

    def tag(self, body: bytes, repo: str, revision: str) -> None:
        self.require_owner()
        self.reference(repo, json.loads(body)["tag"], revision)

    def reference(self, repo: str, name: str, start: str) -> None:
        commit, _ = self.revision(repo, start)
        exists = name in self.repository(repo).references
        self.repository(repo).references.setdefault(name, commit)
        self.answer(b"{}", 409 if exists else 200)

    def info(self, body: bytes, repo: str, revision: str = "main") -> None:
        name, files = self.revision(repo, revision)
        siblings = [{"rfilename": path} for path in files]
        self.answer_json({"id": repo, "sha": name, "siblings": siblings, "private": self.repository(repo).private})

    def tree(self, body: bytes, repo: str, revision: str, folder: str | None = None) -> None:
        name, files = self.revision(repo, revision)
        inside = [path for path in files if folder is None or path.startswith(f"{folder}/")]
        if folder is not None and not inside:
            raise Refused(404, "EntryNotFound", f"{folder} does not exist on {revision}")
        self.answer_json([_entry(path, files[path]) for path in inside])

    def paths_info(self, body: bytes, repo: str, revision: str) -> None:
        _, files = self.revision(repo, revision)
        self.answer_json([_entry(path, files[path]) for path in json.loads(body)["paths"] if path in files])

    def resolve(self, body: bytes, repo: str, revision: str, file: str) -> None:
        name, files = self.revision(repo, revision)
        if file not in files:
            raise Refused(404, "EntryNotFound", f"{file} is not in {repo}")
        self.answer(files[file], headers={"X-Repo-Commit": name, "ETag": f'"{_name(files[file])}"'})


def _name(content: bytes) -> str:
    """A file's name in git, or in git LFS where it is large."""
    if len(content) >= LFS_FROM:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": _name(content)}
    if len(content) >= LFS_FROM:
        entry["lfs"] = {"oid": _name(content), "size": len(content), "pointerSize": 130}
    return entry


_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_REVISION = r"(?P<revision>[\w.-]+)"
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", r"/api/whoami-v2", _Handler.whoami),
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate),
    ("POST", rf"/api/models/{_REPO}/preupload/{_REVISION}", _Handler.preupload),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler.large_batch),
    ("PUT", r"/large/(?P<oid>\w+)", _Handler.put_large),
    ("POST", rf"/api/models/{_REPO}/commit/{_REVISION}", _Handler.commit),
    ("POST", rf"/api/models/{_REPO}/branch/(?P<branch>[\w.-]+)", _Handler.branch),
    ("POST", rf"/api/models/{_REPO}/tag/{_REVISION}", _Handler.tag),
    ("GET", rf"/api/models/{_REPO}", _Handler.info),
    ("GET", rf"/api/models/{_REPO}/revision/{_REVISION}", _Handler.info),
    ("GET", rf"/api/models/{_REPO}/tree/{_REVISION}(/(?P<folder>.+))?", _Handler.tree),
    ("POST", rf"/api/models/{_REPO}/paths-info/{_REVISION}", _Handler.paths_info),
    ("GET HEAD", rf"/{_REPO}/resolve/{_REVISION}/(?P<file>.+)", _Handler.resolve),
]
