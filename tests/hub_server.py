"""A Hub on loopback, as far as pushing and loading need it: repositories in memory behind the Hub's HTTP interface.

with hub_server() as hub:
    subprocess.run(..., env={**os.environ, **hub.environment(cache)})
"""

import base64
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

LARGE = (".safetensors", ".parquet", ".arrow")
TIME = "2026-01-01T00:00:00.000Z"


@dataclass
class Repository:
    """Commits, oldest first: id and files by path."""

    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)

    def add(self, files: dict[str, bytes]) -> str:
        content = json.dumps([len(self.commits), sorted((path, sha256(data)) for path, data in files.items())])
        self.commits.append((hashlib.sha1(content.encode()).hexdigest(), dict(files)))
        return self.commits[-1][0]

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def describe(path: str, data: bytes) -> dict:
    """A file as the tree and paths-info endpoints list it."""
    entry = {"type": "file", "path": path, "size": len(data), "oid": git_oid(data)}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 130}
    return entry


class Hub:
    """State of the server.

    `requests` lists method and path of every request; `fault(method, path)`, called before each, may return an HTTP
    status to answer with, or do something to the client.
    """

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.fault: Callable[[str, str], int | None] = lambda method, path: None
        self.url = ""

    def environment(self, cache: Path) -> dict[str, str]:
        """Environment variables that send a process to this Hub, with caches of its own."""
        # hf_xet talks to a storage service that is no part of this server; without it, uploads take the LFS route.
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": "hf_loopback",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def files(self, repo_type: str, repo_id: str) -> dict[str, bytes]:
        """Files of the current revision."""
        return self.repositories[repo_type, repo_id].commits[-1][1]


def not_found(code: str) -> JSONResponse:
    return JSONResponse({"error": code}, 404, headers={"X-Error-Code": code, "X-Error-Message": code})


def make_app(hub: Hub) -> FastAPI:
    app = FastAPI()

    @app.middleware("http")
    async def faults(request: Request, call_next):
        hub.requests.append((request.method, request.url.path))
        status = hub.fault(request.method, request.url.path)
        if status is not None:
            return JSONResponse({"error": "scripted fault"}, status)
        return await call_next(request)

    @app.post("/api/validate-yaml")
    async def validate_yaml():
        return {"errors": [], "warnings": []}

    @app.post("/api/repos/create")
    async def create(request: Request):
        body = await request.json()
        repo_id, repo_type = f"{body['organization']}/{body['name']}", body.get("type") or "model"
        url = {"url": f"{hub.url}/{'' if repo_type == 'model' else repo_type + 's/'}{repo_id}"}
        if (repo_type, repo_id) in hub.repositories:
            return JSONResponse({"error": "You already created this repo", **url}, 409)
        repository = hub.repositories[repo_type, repo_id] = Repository()
        repository.add({".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        return url

    def find(kind: str, org: str, name: str, revision: str):
        """Repository, commit id and files, or the Hub's answer that there are none."""
        repository = hub.repositories.get((kind.removesuffix("s"), f"{org}/{name}"))
        if repository is None:
            return None, not_found("RepoNotFound"), None
        commit = repository.at(revision)
        return (repository, *commit) if commit else (None, not_found("RevisionNotFound"), None)

    @app.get("/api/{kind}/{org}/{name}")
    @app.get("/api/{kind}/{org}/{name}/revision/{revision}")
    async def info(kind: str, org: str, name: str, revision: str = "main"):
        repository, commit, files = find(kind, org, name, revision)
        if repository is None:
            return commit
        siblings = [{"rfilename": path} for path in files]
        about = {"id": f"{org}/{name}", "sha": commit, "siblings": siblings, "lastModified": TIME, "createdAt": TIME}
        return {**about, "private": False, "gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0}

    @app.get("/api/{kind}/{org}/{name}/tree/{revision}")
    @app.get("/api/{kind}/{org}/{name}/tree/{revision}/{folder:path}")
    async def tree(kind: str, org: str, name: str, revision: str, folder: str = "", recursive: bool = False):
        repository, commit, files = find(kind, org, name, revision)
        if repository is None:
            return commit
        prefix = f"{folder.rstrip('/')}/" if folder else ""
        below = {path: data for path, data in files.items() if path.startswith(prefix)}
        if not below:
            return not_found("EntryNotFound")
        entries, folders = [], set()
        for path, data in below.items():
            parents = path.removeprefix(prefix).split("/")[:-1]
            folders |= {
                prefix + "/".join(parents[: i + 1]) for i in range(len(parents) if recursive else parents != [])
            }
            if recursive or not parents:
                entries.append(describe(path, data))
        return [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(folders)] + entries

    @app.post("/api/{kind}/{org}/{name}/paths-info/{revision}")
    async def paths_info(kind: str, org: str, name: str, revision: str, request: Request):
        repository, commit, files = find(kind, org, name, revision)
        if repository is None:
            return commit
        wanted = (await request.json())["paths"] if "json" in request.headers["content-type"] else []
        wanted = wanted or (await request.form()).getlist("paths")
        folders = [p for p in wanted if any(path.startswith(f"{p}/") for path in files)]
        listed = [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in folders]
        return listed + [describe(path, files[path]) for path in wanted if path in files]

    @app.post("/api/{kind}/{org}/{name}/preupload/{revision}")
    async def preupload(kind: str, org: str, name: str, revision: str, request: Request):
        repository, commit, files = find(kind, org, name, revision)
        if repository is None:
            return commit
        answer = []
        for item in (await request.json())["files"]:
            path, large = item["path"], item["path"].endswith(LARGE)
            known = files.get(path)
            oid = None if known is None else sha256(known) if large else git_oid(known)
            answer.append(
                {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}
            )
        return {"files": answer}

    async def lfs_batch(request: Request):
        objects = []
        for item in (await request.json())["objects"]:
            entry = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in hub.objects:
                href = f"{hub.url}/lfs/{item['oid']}"
                entry["actions"] = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
            objects.append(entry)
        return {"transfer": "basic", "objects": objects}

    app.post("/{org}/{name}.git/info/lfs/objects/batch")(lfs_batch)
    app.post("/{kind}/{org}/{name}.git/info/lfs/objects/batch")(lfs_batch)

    @app.put("/lfs/{oid}")
    async def upload(oid: str, request: Request):
        data = await request.body()
        if sha256(data) != oid:
            return JSONResponse({"error": "wrong content"}, 400)
        hub.objects[oid] = data
        return Response()

    @app.post("/lfs/{oid}/verify")
    async def verify(oid: str):
        return {} if oid in hub.objects else not_found("EntryNotFound")

    @app.post("/api/{kind}/{org}/{name}/commit/{revision}")
    async def commit(kind: str, org: str, name: str, revision: str, request: Request):
        repository, head, files = find(kind, org, name, revision)
        if repository is None:
            return head
        changed = dict(files)
        for line in (await request.body()).splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                if value.get("parentCommit", head) != head:
                    return JSONResponse({"error": "the branch has moved"}, 412)
            elif item["key"] == "file":
                changed[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                changed[value["path"]] = hub.objects[value["oid"]]
            elif item["key"] == "deletedFile":
                del changed[value["path"]]
            else:
                return JSONResponse({"error": f"cannot do {item['key']}"}, 400)
        oid = repository.add(changed)
        return {"commitUrl": f"{hub.url}/{org}/{name}/commit/{oid}", "commitOid": oid, "pullRequestUrl": None}

    def resolve(kind: str, org: str, name: str, revision: str, path: str, request: Request):
        repository, commit_id, files = find(kind, org, name, revision)
        if repository is None:
            return commit_id
        headers = {"X-Repo-Commit": commit_id}
        if path not in files:
            missing = not_found("EntryNotFound")
            missing.headers.update(headers)
            return missing
        data = files[path]
        headers |= {"ETag": f'"{sha256(data) if path.endswith(LARGE) else git_oid(data)}"', "Accept-Ranges": "bytes"}
        first, last = 0, len(data) - 1
        if wanted := request.headers.get("range"):
            low, _, high = wanted.removeprefix("bytes=").partition("-")
            first, last = int(low), min(int(high or last), last)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        if request.method == "HEAD":
            return Response(headers={**headers, "Content-Length": str(len(data))})
        return Response(data[first : last + 1], 206 if wanted else 200, headers, "application/octet-stream")

    @app.api_route("/datasets/{org}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
    async def resolve_dataset(org: str, name: str, revision: str, path: str, request: Request):
        return resolve("datasets", org, name, revision, path, request)

    @app.api_route("/spaces/{org}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
    async def resolve_space(org: str, name: str, revision: str, path: str, request: Request):
        return resolve("spaces", org, name, revision, path, request)

    @app.api_route("/{org}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
    async def resolve_model(org: str, name: str, revision: str, path: str, request: Request):
        return resolve("models", org, name, revision, path, request)

    return app


@contextmanager
def hub_server() -> Iterator[Hub]:
    hub = Hub()
    server = uvicorn.Server(uvicorn.Config(make_app(hub), host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    hub.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield hub
    finally:
        server.should_exit = True
        thread.join()
