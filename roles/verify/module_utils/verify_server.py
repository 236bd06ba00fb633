"""Checks of the pgchroma server: the installed release, readiness through the front door, a round trip that leaves nothing behind."""

from __future__ import annotations

import http.client
import json
import ssl
import urllib.parse
import uuid
from pathlib import Path
from typing import Any

from ansible.module_utils.verify_report import failed, passed, skipped
from ansible.module_utils.verify_system import unit_properties

BASE = "/api/v2/tenants/default_tenant/databases/default_database/collections"
SCRATCH_PREFIX = "pgchroma-verify-"


class ServerError(Exception):
    """The server could not be reached, or answered otherwise than it must."""


class Client:
    """The few calls that a check makes, over the standard library, so that hosts need nothing else."""

    def __init__(self, url: str, ca_file: str, token: str, timeout: float = 10) -> None:
        self.parts = urllib.parse.urlsplit(url)
        if self.parts.scheme not in ("http", "https") or self.parts.hostname is None:
            raise ServerError(f"verify_url {url!r} is not of the form http://host:port or https://host:port")
        self.context = (
            ssl.create_default_context(cafile=ca_file or None) if self.parts.scheme == "https" else None
        )
        self.headers = {"Content-Type": "application/json"}
        if token:
            self.headers["Authorization"] = f"Bearer {token}"
        self.timeout = timeout

    def call(self, method: str, path: str, body: object = None) -> tuple[int, object]:
        """Return the status and the decoded body (text if it is not JSON) of one request."""
        host, port = str(self.parts.hostname), self.parts.port
        connection: http.client.HTTPConnection
        if self.context is not None:
            connection = http.client.HTTPSConnection(host, port, timeout=self.timeout, context=self.context)
        else:
            connection = http.client.HTTPConnection(host, port, timeout=self.timeout)
        data = None if body is None else json.dumps(body)
        try:
            connection.request(method, self.parts.path.rstrip("/") + path, data, self.headers)
            answer = connection.getresponse()
            status, raw = answer.status, answer.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(f"{self.parts.netloc} does not answer: {error}") from error
        finally:
            connection.close()
        try:
            return status, json.loads(raw)
        except ValueError:
            return status, raw

    def must(self, method: str, path: str, body: object = None) -> object:
        """Return the decoded body of a request that has to succeed."""
        status, answer = self.call(method, path, body)
        if not 200 <= status < 300:
            raise ServerError(f"{method} {path} answered {status}: {answer}")
        return answer

    def must_object(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """Return the body of a request that has to succeed with a JSON object."""
        answer = self.must(method, path, body)
        if not isinstance(answer, dict):
            raise ServerError(f"{method} {path} answered {answer!r}, which is not an object")
        return answer


def check_release(install_dir: str, unit: str) -> list[dict[str, str]]:
    """Check that the current release is complete and is the one that runs."""
    current = Path(install_dir) / "current"
    if not (current / ".complete").exists():
        hint = "run site.yml; it installs the release again"
        return [failed("pgchroma.release", "critical", f"{current} is not a complete release", hint)]
    name = current.resolve().name
    pid = unit_properties(unit).get("MainPID", "0")
    if pid == "0":
        return [
            failed(
                "pgchroma.release",
                "critical",
                f"{name} is installed, but not running",
                f"journalctl -u {unit}",
            )
        ]
    # A program in a virtual environment is started by the interpreter in it, so its command line tells the release.
    line = (Path("/proc") / pid / "cmdline").read_bytes().decode().replace("\0", " ")
    if f"/{name}/" not in line:
        hint = f"systemctl restart {unit}"
        return [failed("pgchroma.release", "critical", f"{name} is current, but {line.strip()} runs", hint)]
    return [passed("pgchroma.release", "critical", f"{name} is installed, current and running")]


def round_trip(client: Client) -> str:
    """Write, read, search and delete in a collection of its own, which is deleted whatever happens; return what was done."""
    name = SCRATCH_PREFIX + uuid.uuid4().hex
    collection = client.must_object(
        "POST", BASE, {"name": name, "metadata": {"purpose": "verification, deleted at once"}}
    )
    records = f"{BASE}/{collection['id']}"
    vectors = {"x": [1.0, 0.0, 0.0], "y": [0.0, 1.0, 0.0], "z": [0.0, 0.0, 1.0]}
    try:
        client.must(
            "POST",
            f"{records}/add",
            {
                "ids": list(vectors),
                "embeddings": list(vectors.values()),
                "documents": [f"document {key} äöü 漢" for key in vectors],
                "metadatas": [{"axis": key, "number": 1.5} for key in vectors],
            },
        )
        read = client.must_object(
            "POST", f"{records}/get", {"ids": ["y"], "include": ["documents", "metadatas", "embeddings"]}
        )
        expected = {
            "ids": ["y"],
            "documents": ["document y äöü 漢"],
            "metadatas": [{"axis": "y", "number": 1.5}],
            "embeddings": [vectors["y"]],
        }
        for key, value in expected.items():
            if read.get(key) != value:
                raise ServerError(f"read {key} {read.get(key)!r}, wrote {value!r}")
        query = {"query_embeddings": [[0.1, 0.2, 0.9]], "n_results": 1, "include": ["distances"]}
        nearest = client.must_object("POST", f"{records}/query", query)["ids"]
        if nearest != [["z"]]:
            raise ServerError(f"the record nearest to z is {nearest!r}, expected [['z']]")
        client.must("POST", f"{records}/delete", {"ids": ["y"]})
        left = client.must("GET", f"{records}/count")
        if left != 2:
            raise ServerError(f"{left} records left after deleting 1 of 3")
    finally:
        client.must("DELETE", f"{BASE}/{name}")
    return "3 records written, read back equal, searched, 1 deleted, collection removed"


def check_server(url: str, ca_file: str, token: str, write: bool, reason: str) -> list[dict[str, str]]:
    """Check readiness through the front door and, when ``write``, that data goes in and comes out; else say the reason."""
    hint = "journalctl -u pgchroma -n 50; the body of /api/v2/healthcheck names what is missing"
    try:
        client = Client(url, ca_file, token)
        status, body = client.call("GET", "/api/v2/healthcheck")
        if status != 200:
            raise ServerError(f"{url}/api/v2/healthcheck answered {status}: {body}")
        version = client.must("GET", "/api/v2/version")
    except ServerError as error:
        return [
            failed("server.ready", "critical", str(error), hint),
            skipped("server.round_trip", "critical", "the server is not ready"),
        ]
    results = [passed("server.ready", "critical", f"{url} is ready and speaks the API of Chroma {version}")]
    if not write:
        return [*results, skipped("server.round_trip", "critical", reason)]
    try:
        results.append(passed("server.round_trip", "critical", round_trip(client)))
    except ServerError as error:
        results.append(failed("server.round_trip", "critical", str(error), hint))
    return results
