"""A local stand-in of Weights & Biases' service, as far as its package asks: runs that begin or go on (GraphQL), and
the lines of their history (file stream). GET /points counts those, GET /go-away makes it answer with errors
until a test has it back."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Service:
    """history: of each run, by its id: lines at their places. away: whether it answers with an error."""

    def __init__(self) -> None:
        self.history: dict[str, dict[int, dict[str, Any]]] = {}
        self.away = False
        self.asked: list[str] = []
        self.refused = 0

    def points(self, run: str) -> list[dict[str, Any]]:
        return [line for _, line in sorted(self.history.get(run, {}).items())]

    def graphql(self, body: dict[str, Any], address: str) -> dict[str, Any]:
        found = re.search(r"(?:query|mutation)\s+(\w+)", body["query"])
        name, variables = found[1] if found else "", body.get("variables") or {}
        self.asked.append(name)
        if name == "Viewer":
            return {"viewer": {"id": "1", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        if "RunResumeStatus" in name or "RunStatus" in name:
            run = variables.get("name") or ""
            return {"model": {"id": "p", "name": "tests", "entity": {"name": "me"}, "bucket": self._bucket(run)}}
        if name == "UpsertBucket":
            run = variables["name"]
            known = run in self.history
            self.history.setdefault(run, {})
            return {"upsertBucket": {"bucket": self._bucket(run), "inserted": not known}}
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{address}/{file}"} for file in variables["files"]]
            return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}
        if name == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        return {}

    def _bucket(self, run: str) -> dict[str, Any] | None:
        if run not in self.history:
            return None
        points = self.points(run)
        tail = json.dumps([json.dumps(points[-1])] if points else [])
        project = {"id": "p", "name": "tests", "entity": {"id": "e", "name": "me"}}
        return {
            "id": run, "name": run, "displayName": run, "description": None, "sweepName": None, "project": project,
            "historyLineCount": len(points), "eventsLineCount": 0, "logLineCount": 0, "historyTail": tail,
            "eventsTail": "[]", "summaryMetrics": "{}", "config": "{}", "wandbConfig": '{"t": 1}', "tags": [],
        }  # fmt: skip

    def stream(self, run: str, body: dict[str, Any]) -> None:
        part = (body.get("files") or {}).get("wandb-history.jsonl")
        for place, line in enumerate(part["content"] if part else [], part["offset"] if part else 0):
            self.history.setdefault(run, {})[place] = json.loads(line)


@contextlib.contextmanager
def service() -> Iterator[tuple[Service, str]]:
    """-> the stand-in, and its address."""
    stands_in = Service()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # noqa: N802
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if stands_in.away:
                stands_in.refused += 1
                self.send_error(503)
                return
            body = json.loads(raw) if self.path.endswith(("/graphql", "/file_stream")) else {}
            answer: dict[str, Any] = {}
            if self.path.endswith("/graphql"):
                answer = {"data": stands_in.graphql(body, f"http://{self.headers['Host']}")}
            elif match := re.search(r"/([^/]+)/file_stream$", self.path):
                stands_in.stream(match[1], body)
            self._answer(answer)

        def do_PUT(self) -> None:  # noqa: N802
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._answer({})

        def do_GET(self) -> None:  # noqa: N802
            if self.path == "/go-away":
                stands_in.away = True
            self._answer(sum(map(len, stands_in.history.values())) if self.path == "/points" else {})

        def _answer(self, answer: Any) -> None:
            text = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield stands_in, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
