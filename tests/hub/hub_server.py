"""A Hub in a thread of the test: the part of its HTTP interface that uploading and downloading a model takes.

It keeps everything in memory, and speaks plain LFS: a client must have `HF_HUB_DISABLE_XET=1`, as it asks no server
before it uploads by Xet. To download by Xet it needs a header that is never sent here.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_right"
USER = "someone"
LFS_ENDINGS = (".safetensors", ".bin", ".png", ".webp", ".jpg")
Files = dict[str, bytes]


@dataclass
class Repo:
    private: bool
    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: Files, message: str) -> str:
        oid = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        self.commits[oid], self.branches[branch] = files, oid
        self.messages.append(message)
        return oid

    def files(self, revision: str = "main") -> Files:
        return self.commits[self.branches.get(revision, revision)]


class Answer(Exception):
    """Ends a request."""

    def __init__(self, status: int, body: Any = b"", **headers: str) -> None:
        self.status, self.body = status, body if isinstance(body, bytes) else json.dumps(body).encode()
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Hub(ThreadingHTTPServer):
    """What the Hub holds, and how it fails.

    Attributes:
        repos: Repository id -> what it holds.
        blobs: LFS files that have arrived, by their SHA-256; a commit may name them.
        requests: Method and path of all requests.
        cut_uploads, cut_downloads: How many of the next transfers of weights are cut off in the middle.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.cut_uploads = self.cut_downloads = 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnected."""


@contextmanager
def running_hub() -> Iterator[Hub]:
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()


def oid_of(path: str, content: bytes) -> str:
    if path.endswith(LFS_ENDINGS):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def handle_request(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        length = int(self.headers.get("Content-Length", 0))
        if self.command == "PUT" and self.server.cut_uploads > 0:
            self.server.cut_uploads -= 1
            self.rfile.read(length // 2)
            raise ConnectionAbortedError
        self.body = self.rfile.read(length)
        try:
            for pattern, method in ROUTES:
                if match := re.fullmatch(pattern, f"{self.command} {path}"):
                    self.check_token(writing=self.command in ("POST", "PUT"))
                    method(self, **match.groupdict())
            raise Answer(404, {"error": "no such page"})
        except Answer as answer:
            self.send(answer)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""

    def check_token(self, writing: bool) -> None:
        if self.path.startswith("/lfs/"):
            return  # addresses of uploads are secret, and come without a token
        given = self.headers.get("Authorization")
        if given not in (None, f"Bearer {TOKEN}"):
            message = "Invalid credentials in Authorization header"
            raise Answer(401, {"error": message}, X_Error_Message=message)
        if given is None and writing:
            raise Answer(401, {"error": "Unauthorized"})

    def repo(self, repo_id: str) -> Repo:
        repo = self.server.repos.get(repo_id)
        if repo is None or (repo.private and "Authorization" not in self.headers):
            raise Answer(401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        return repo

    def commit_of(self, repo: Repo, revision: str) -> str:
        oid = repo.branches.get(revision, revision)
        if oid not in repo.commits:
            raise Answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        return oid

    # Accounts and repositories

    def whoami(self) -> None:
        if "Authorization" not in self.headers:
            raise Answer(401, {"error": "Unauthorized"})
        raise Answer(200, {"type": "user", "name": USER, "orgs": []})

    def create_repo(self) -> None:
        asked = json.loads(self.body)
        owner = asked.get("organization") or USER
        if owner != USER:
            message = f"You don't have the rights to create a model under the namespace {owner!r}"
            raise Answer(403, {"error": message}, X_Error_Message=message)
        repo_id = f"{owner}/{asked['name']}"
        status = 409 if repo_id in self.server.repos else 200
        if status == 200:
            self.server.repos[repo_id] = Repo(
                private=asked.get("visibility") == "private" or asked.get("private", False)
            )
            self.server.repos[repo_id].commit("main", {".gitattributes": b""}, "initial commit")
        raise Answer(status, {"url": f"{self.server.url}/{repo_id}", "name": repo_id})

    def create_branch(self, repo_id: str, revision: str) -> None:
        repo = self.repo(repo_id)
        if revision in repo.branches:
            raise Answer(409, {"error": "Reference already exists"})
        repo.branches[revision] = repo.branches["main"]
        raise Answer(200, {})

    def validate_yaml(self) -> None:
        raise Answer(200, {"errors": [], "warnings": []})

    # Uploads: ask how each file is to come, send the large ones, then commit all at once

    def preupload(self, repo_id: str, revision: str) -> None:
        repo = self.repo(repo_id)
        present = repo.commits[self.commit_of(repo, revision)]
        files = [
            {
                "path": path,
                "uploadMode": "lfs" if path.endswith(LFS_ENDINGS) else "regular",
                "shouldIgnore": False,
                "oid": oid_of(path, present[path]) if path in present else None,
            }
            for path in (file["path"] for file in json.loads(self.body)["files"])
        ]
        raise Answer(200, {"files": files})

    def lfs_batch(self, repo_id: str) -> None:
        self.repo(repo_id)
        objects = json.loads(self.body)["objects"]
        for item in objects:
            if item["oid"] not in self.server.blobs:
                item["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{item['oid']}"}}
        raise Answer(200, {"transfer": "basic", "objects": objects})

    def receive(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Answer(400, {"error": "not what was announced"})
        self.server.blobs[oid] = self.body
        raise Answer(200)

    def commit(self, repo_id: str, revision: str) -> None:
        repo = self.repo(repo_id)
        files = dict(repo.commits[self.commit_of(repo, revision)])
        message = ""
        for line in self.body.splitlines():
            step = json.loads(line)
            value = step["value"]
            if step["key"] == "header":
                message = value["summary"]
            elif step["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif step["key"] == "lfsFile" and value["oid"] in self.server.blobs:
                files[value["path"]] = self.server.blobs[value["oid"]]
            else:
                raise Answer(400, {"error": f"cannot {step['key']} {value['path']}"})
        oid = repo.commit(revision, files, message)
        raise Answer(200, {"commitOid": oid, "commitUrl": f"{self.server.url}/{repo_id}/commit/{oid}", "success": True})

    # Downloads

    def model_info(self, repo_id: str, revision: str | None = None) -> None:
        repo = self.repo(repo_id)
        oid = self.commit_of(repo, revision or "main")
        siblings = [{"rfilename": path} for path in repo.commits[oid]]
        raise Answer(200, {"id": repo_id, "sha": oid, "private": repo.private, "tags": [], "siblings": siblings})

    def tree(self, repo_id: str, revision: str, folder: str | None = None) -> None:
        repo = self.repo(repo_id)
        files = {
            path: content
            for path, content in repo.commits[self.commit_of(repo, revision)].items()
            if folder is None or path.startswith(folder + "/")
        }
        if folder is not None and not files:
            raise Answer(404, {"error": "no such folder"}, X_Error_Code="EntryNotFound")
        entries = [
            {"type": "file", "path": path, "size": len(content), "oid": oid_of(path, content)}
            for path, content in files.items()
        ]
        raise Answer(200, entries)

    def resolve(self, repo_id: str, revision: str, path: str) -> None:
        repo = self.repo(repo_id)
        commit = self.commit_of(repo, revision)
        if path not in repo.commits[commit]:
            raise Answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        content = repo.commits[commit][path]
        headers = {"ETag": f'"{oid_of(path, content)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        status = 200
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(asked[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            status, content = 206, content[start:]
        if self.server.cut_downloads > 0 and self.command == "GET" and path.endswith(".safetensors"):
            self.server.cut_downloads -= 1
            headers["Content-Length"] = str(len(content))
            content = content[: len(content) // 2]
        raise Answer(status, content, **headers)


REPO = r"(?P<repo_id>[^/]+/[^/]+)"
MODEL = rf"/api/models/{REPO}"
REVISION = r"(?P<revision>[^/]+)"
ROUTES: list[tuple[str, Any]] = [
    (r"GET /api/whoami-v2", Handler.whoami),
    (r"POST /api/repos/create", Handler.create_repo),
    (r"POST /api/validate-yaml", Handler.validate_yaml),
    (rf"POST {MODEL}/branch/{REVISION}", Handler.create_branch),
    (rf"POST {MODEL}/preupload/{REVISION}", Handler.preupload),
    (rf"POST /{REPO}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    (r"PUT /lfs/(?P<oid>\w+)", Handler.receive),
    (rf"POST {MODEL}/commit/{REVISION}", Handler.commit),
    (rf"GET {MODEL}(/revision/{REVISION})?", Handler.model_info),
    (rf"GET {MODEL}/tree/{REVISION}(/(?P<folder>.+))?", Handler.tree),
    (rf"(GET|HEAD) /{REPO}/resolve/{REVISION}/(?P<path>.+)", Handler.resolve),
]
