"""A Neptune server as far as a run needs one: log-in, project, run, operations. Tests start it, kill and stop it.

``python tests/neptune_server.py FILE``: the port is the first line on stdout; each operation that arrives becomes a
line of JSON in FILE. Nothing of Neptune's own server is in here: the client takes the paths from the description that
it gets.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt

LIFE_S = 600
EXPERIMENT = {
    "id": "00000000-0000-4000-8000-000000000001",
    "type": "run",
    "shortId": "HEADS-1",
    "organizationName": "team",
    "projectName": "heads",
    "trashed": False,
}
PROJECT = {"id": "00000000-0000-4000-8000-000000000002", "name": "heads", "organizationName": "team"}
# Operation: where each of its parameters stands.
BACKEND = {
    "getClientConfig": {"X-Neptune-Api-Token": "header", "alpha": "query"},
    "exchangeApiToken": {"X-Neptune-Api-Token": "header"},
    "getProject": {"projectIdentifier": "query"},
}
LEADERBOARD = {
    "createExperiment": {"experimentCreationParams": "body", "X-Neptune-CliVersion": "header"},
    "getExperiment": {"experimentId": "query"},
    "executeOperations": {"experimentId": "query", "operations": "body"},
    "getExperimentAttributes": {"experimentId": "query"},
    "ping": {"experimentId": "query"},
}


def swagger(operations: dict[str, dict[str, str]], port: int) -> dict[str, Any]:
    """The description of an interface, which the client builds its calls from."""
    paths = {}
    for name, places in operations.items():
        parameters = [
            {"name": parameter, "in": place, **({"schema": {}} if place == "body" else {"type": "string"})}
            for parameter, place in places.items()
        ]
        reply = {"$ref": "#/definitions/Reply"} if name != "executeOperations" else {"type": "array", "items": {}}
        method = "post" if "body" in places.values() else "get"
        responses = {"200": {"description": "", "schema": reply}}
        call = {"operationId": name, "tags": ["api"], "parameters": parameters, "responses": responses}
        paths[f"/api/{name}"] = {method: call}
    return {
        "swagger": "2.0",
        "info": {"title": "", "version": "1"},
        "host": f"127.0.0.1:{port}",
        "schemes": ["http"],
        "consumes": ["application/json"],
        "produces": ["application/json"],
        "paths": paths,
        "definitions": {"Reply": {"type": "object", "properties": {}}},
    }


class Handler(BaseHTTPRequestHandler):
    """Answers all requests; keeps the operations."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        port = self.server.server_address[1]
        address = f"http://127.0.0.1:{port}"
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        name = self.path.partition("?")[0].removeprefix("/api/")
        access = jwt.encode({"exp": time.time() + LIFE_S, "azp": "cli", "iss": f"{address}/api"}, "k" * 32)
        if name == "executeOperations":
            with Path(sys.argv[1]).open("a") as file:
                file.writelines(json.dumps(operation) + "\n" for operation in json.loads(body))
        replies = {
            "backend/swagger.json": swagger(BACKEND, port),
            "leaderboard/swagger.json": swagger(LEADERBOARD, port),
            "getClientConfig": {"apiUrl": address, "applicationUrl": address, "pyLibVersions": {}},
            "exchangeApiToken": {"accessToken": access, "refreshToken": access},
            "protocol/openid-connect/token": {
                "access_token": access,
                "refresh_token": access,
                "expires_in": LIFE_S,
                "token_type": "Bearer",
            },
            "getProject": {**PROJECT, "version": 2, "projectKey": "HEADS"},
            "createExperiment": EXPERIMENT,
            "getExperiment": EXPERIMENT,
            "executeOperations": [],
            "getExperimentAttributes": {"attributes": []},
            "ping": {},
        }
        reply = json.dumps(replies.get(name, {})).encode()
        self.send_response(200 if name in replies else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, form: str, *arguments: Any) -> None:
        print(form % arguments, file=sys.stderr)


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Timer(LIFE_S, server.shutdown).start()
    print(server.server_address[1], flush=True)
    server.serve_forever()
