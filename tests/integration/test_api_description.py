"""The description of the API says what the server does: every route, and real answers to it."""

import json
import re
import urllib.request
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from fastapi.openapi.models import OpenAPI
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from conformance.differential.model import Answer, Player, Scenario
from conformance.differential.table import SCENARIOS
from pgchroma.server import openapi
from pgchroma.server.routes import ROUTES
from support.api import DATABASE, Api
from support.server import ServerProcess

METHODS = {"get", "post", "put", "patch", "delete"}


@pytest.fixture(scope="module")
def description(server: ServerProcess) -> dict[str, Any]:
    status, body, headers = Api(server.port)("GET", "/openapi.json")
    assert (status, headers["content-type"]) == (200, "application/json")
    assert isinstance(body, dict)
    return body


def operations(description: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "$ref":
                yield item
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def validator(description: dict[str, Any], schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator({"components": description["components"], **schema})


def test_every_route_is_described_and_nothing_else(description: dict[str, Any]) -> None:
    described = {(method, path) for method, path, _ in operations(description)}
    assert described == {(route.method, route.path) for route in ROUTES}
    assert {openapi.key_of(route) for route in ROUTES} == set(openapi.DESCRIPTIONS)


def test_it_is_a_whole_openapi_document(description: dict[str, Any]) -> None:
    OpenAPI.model_validate(description)
    assert description["openapi"].startswith("3.1.")
    identifiers = [operation["operationId"] for _, _, operation in operations(description)]
    assert len(set(identifiers)) == len(identifiers)
    tags = {tag["name"] for tag in description["tags"]}
    for method, path, operation in operations(description):
        assert method.lower() in METHODS
        assert operation["summary"], path
        assert set(operation["tags"]) <= tags
        named = [parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "path"]
        assert named == re.findall(r"\{(\w+)\}", path)
        for requirement in operation["security"]:
            assert set(requirement) <= set(description["components"]["securitySchemes"])
        assert bool(operation["security"]) == (operation["x-scope"] != "open")
        assert any(status.startswith("2") for status in operation["responses"])
    for reference in references(description):
        assert reference.removeprefix("#/components/schemas/") in description["components"]["schemas"]
    for schema in description["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


class Matcher:
    """Finds the operation that a request is about."""

    def __init__(self, description: dict[str, Any]) -> None:
        self._description = description
        self._patterns = [
            (method, re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path)) + r"(\?.*)?"), operation)
            for method, path, operation in sorted(
                operations(description), key=lambda entry: "by-id" not in entry[1]
            )
        ]

    def find(self, method: str, path: str) -> dict[str, Any] | None:
        for known, pattern, operation in self._patterns:
            if known == method and pattern.fullmatch(path):
                return operation
        return None

    def problem(self, operation: dict[str, Any], answer: Answer) -> str:
        """Return in what an answer is not as described, or an empty string."""
        response = operation["responses"].get(str(answer.status))
        if response is None:
            return f"status {answer.status} is not described"
        schema = response["content"]["application/json"]["schema"]
        found: ValidationError | None = next(
            validator(self._description, schema).iter_errors(answer.body), None
        )
        return "" if found is None else f"{found.json_path}: {found.message[:300]}"


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_answers_are_as_described(
    server: ServerProcess, description: dict[str, Any], scenario: Scenario
) -> None:
    """Every answer of the table of requests, good or bad, has a described status and body; so has every body that is taken."""
    matcher = Matcher(description)
    checked = 0
    for step, answer in zip(scenario.steps, Player(server.port).play(scenario), strict=True):
        path = (
            step.path.replace("{c}", "{cs}/x").replace("{cs}", "{db}/collections").replace("{db}", "{dbs}/x")
        )
        path = re.sub(r"\{(wide|narrow|e|second|inside)\}", "{dbs}/x/collections/x", path)
        operation = matcher.find(step.method, path.replace("{dbs}", "/api/v2/tenants/x/databases"))
        if operation is None:
            assert answer.status in (0, 200, 400, 404, 405, 410), f"{step}: {answer}"
            continue
        assert matcher.problem(operation, answer) == "", f"{step}: {answer}"
        if answer.status < 300 and "requestBody" in operation and not isinstance(step.body, bytes):
            body = operation["requestBody"]["content"]["application/json"]["schema"]
            assert [error.message for error in validator(description, body).iter_errors(step.body)] == []
        checked += 1
    assert checked


def test_a_wrong_answer_would_be_noticed(description: dict[str, Any]) -> None:
    matcher = Matcher(description)
    operation = matcher.find("GET", f"{DATABASE}/collections_count")
    assert operation is not None
    assert matcher.problem(operation, Answer(200, 5)) == ""
    assert matcher.problem(operation, Answer(200, "5"))
    assert matcher.problem(operation, Answer(200, -1))
    assert matcher.problem(operation, Answer(418, 5))
    assert matcher.problem(operation, Answer(404, {"error": "x"}))


@pytest.mark.parametrize(
    ("action", "body"),
    [
        ("get", {"ids": "a"}),
        ("get", {"limit": -1}),
        ("get", {"include": ["nope"]}),
        ("get", {"where": {"k": {"$nope": 1}}}),
        ("get", {"where": {"a": 1, "b": 2}}),
        ("get", {"where_document": {"$contains": 5}}),
        ("add", {"ids": ["a"]}),
        ("add", {"ids": ["a"], "embeddings": [["x"], [1]]}),
        ("update", {"ids": [None]}),
        ("query", {"query_embeddings": None}),
        ("fork", {}),
    ],
)
def test_what_is_refused_for_its_shape_is_not_described(
    api: Api, description: dict[str, Any], records: str, action: str, body: object
) -> None:
    operation = Matcher(description).find("POST", f"{records}/{action}")
    assert operation is not None
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert not validator(description, schema).is_valid(body)
    assert api("POST", f"{records}/{action}", body)[0] in (400, 422)


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.identifiers: set[str] = set()
        self.links: set[str] = set()
        self.tags: set[str] = set()
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id":
                self.identifiers.add(value or "")
            elif name == "href":
                self.links.add(value or "")
            elif name in ("src", "srcset", "action", "style"):
                self.sources.append(f"{tag} {name}={value}")


def test_the_page_stands_alone(server: ServerProcess, description: dict[str, Any]) -> None:
    with urllib.request.urlopen(f"{server.url}/docs") as answer:  # noqa: S310 - our own URL
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        text = answer.read().decode()
    page = Links()
    page.feed(text)
    assert page.sources == []
    assert not page.tags & {"script", "link", "img", "iframe", "base"}
    assert "url(" not in text
    assert "@import" not in text
    # Every link leads to a place on the page or to the description for programs.
    assert {link for link in page.links if not link.startswith("#")} == {"/openapi.json"}
    assert {link[1:] for link in page.links if link.startswith("#")} <= page.identifiers
    for _, path, operation in operations(description):
        assert operation["operationId"] in page.identifiers
        assert json.dumps(path)[1:-1] in text
    assert {f"schema-{name}" for name in description["components"]["schemas"]} <= page.identifiers
