"""Requests to be played against Chroma's own server and ours, and what makes two answers the same.

A scenario is a list of raw requests against a database of its own. Answers agree when status, error name and body agree; ids that the
servers choose, times and the place that a parser names in its complaint are left out. Where ours answers otherwise on purpose, the
request says which deviation that is; one that is not observed any more is a failure, too.
"""

import http.client
import json
import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

DISTANCE_TOLERANCE = 1e-5

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PLACE = re.compile(r" at line \d+ column \d+")
# What a parser finds wrong is said in the parser's own words; that it is wrong, and what kind of mistake it is, is the contract.
_PARSER_WORDS = re.compile(
    r"^(Failed to parse the request body as JSON|Failed to deserialize the JSON body into the target type|Invalid base64 string"
    r"|Invalid URL: Invalid UTF-8|Regex syntax errror)\b.*",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Deviation:
    """A way in which our server differs on purpose.

    Attributes:
        title: the difference, as a heading of docs/COMPATIBILITY.md.
        reason: why.
    """

    title: str
    reason: str


@dataclass(frozen=True, slots=True)
class Differs:
    """A body that our server answers otherwise on purpose: with `ours`, the status."""

    body: object
    deviation: Deviation
    ours: int


@dataclass(frozen=True, slots=True)
class Step:
    """One request.

    Attributes:
        path: with `{db}`, `{cs}` (the collections of the scenario's database), `{c}` and other saved ids.
        body: None, bytes to be sent as they are, or anything else as JSON.
        save: name that the id in the answer is kept under.
        only: the members of an answer that are compared; None for all of them.
        unordered: whether the answer is a list whose order nobody promises.
        differs: why our answer is another one on purpose.
        ours: then, the status of our answer.
    """

    method: str
    path: str
    body: object = None
    save: str = ""
    only: tuple[str, ...] | None = None
    unordered: bool = False
    headers: Mapping[str, str] | None = None
    differs: Deviation | None = None
    ours: int = 0

    @classmethod
    def of(cls, method: str, path: str, body: object, only: tuple[str, ...] | None = None) -> "Step":
        """Return a request with a body that may be a `Differs`."""
        if isinstance(body, Differs):
            return cls(method, path, body.body, only=only, differs=body.deviation, ours=body.ours)
        return cls(method, path, body, only=only)

    def __str__(self) -> str:
        return f"{self.method} {self.path} {self.shown_body}".rstrip()

    @property
    def shown_body(self) -> str:
        """The body, short enough for a report."""
        if self.body is None:
            return ""
        text = (
            self.body.decode("utf-8", "replace")
            if isinstance(self.body, bytes)
            else json.dumps(self.body, ensure_ascii=False)
        )
        return text if len(text) <= 160 else f"{text[:150]}… ({len(text)} characters)"


@dataclass(frozen=True, slots=True)
class Scenario:
    """Requests that follow on one another, after `setup` ones that must succeed."""

    name: str
    steps: Sequence[Step]
    setup: Sequence[Step] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: status 0 when the connection was closed without an answer; `body` is None where there was none."""

    status: int
    body: Any = None

    def __str__(self) -> str:
        text = json.dumps(self.body, ensure_ascii=False)
        return f"{self.status} {text if len(text) <= 400 else text[:400] + '…'}"


def bodies(*values: Any) -> tuple[Any, ...]:
    """Return bodies of any shape, to be looped over."""
    return values


class Player:
    """Plays scenarios against one server."""

    def __init__(self, port: int) -> None:
        self._port = port

    def play(self, scenario: Scenario) -> list[Answer]:
        """Return the answers to the scenario's steps, the setup's apart."""
        tenant = f"t-{scenario.name}"
        root = f"/api/v2/tenants/{tenant}/databases"
        names = {"tenant": tenant, "db": f"{root}/main", "dbs": root, "cs": f"{root}/main/collections"}
        self._must("POST", "/api/v2/tenants", {"name": tenant})
        self._must("POST", root, {"name": "main"})
        answers = []
        for step in [*scenario.setup, *scenario.steps]:
            answer = self._send(step.method, _filled(step.path, names), _data(step.body, names), step.headers)
            if step.save and isinstance(answer.body, dict) and "id" in answer.body:
                names[step.save] = f"{names['cs']}/{answer.body['id']}"
                names[f"{step.save}_id"] = answer.body["id"]
            answers.append(answer)
        for step, answer in zip(scenario.setup, answers, strict=False):
            assert answer.status in (200, 201), f"{step}: {answer}"
        return answers[len(scenario.setup) :]

    def _must(self, method: str, path: str, body: object) -> None:
        answer = self._send(method, path, _data(body, {}), None)
        assert answer.status == 200, f"{method} {path}: {answer}"

    def _send(self, method: str, path: str, data: bytes | None, headers: Mapping[str, str] | None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request(
                method, path, data, {"Content-Type": "application/json"} if headers is None else dict(headers)
            )
            response = connection.getresponse()
            text = response.read()
        except (http.client.HTTPException, ConnectionError):
            return Answer(0)
        finally:
            connection.close()
        if not text:
            return Answer(response.status)
        try:
            return Answer(response.status, json.loads(text))
        except ValueError:
            return Answer(response.status, text.decode("utf-8", "replace"))


def _filled(text: str, names: Mapping[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda match: names.get(match[1], match[0]), text)


def _data(body: object, names: Mapping[str, str]) -> bytes | None:
    return body if isinstance(body, bytes | None) else json.dumps(body).encode()


@dataclass(slots=True)
class _Comparison:
    known: list[dict[str, str]] = field(default_factory=lambda: [{}, {}])

    def normal(self, value: Any, side: int) -> Any:
        if isinstance(value, str):
            return _UUID.sub(
                lambda match: self.known[side].setdefault(match[0], f"id-{len(self.known[side])}"), value
            )
        if isinstance(value, list):
            return [self.normal(item, side) for item in value]
        if isinstance(value, dict):
            return {self.normal(key, side): self.normal(item, side) for key, item in value.items()}
        return value


def differences(
    scenario: Scenario, upstream: Sequence[Answer], ours: Sequence[Answer]
) -> Iterator[tuple[Step, str]]:
    """Yield (step, what is wrong): a difference that is not explained, or an explained one that is not there."""
    comparison = _Comparison()
    for step, theirs, own in zip(scenario.steps, upstream, ours, strict=True):
        found = _difference(step, theirs, own, comparison)
        shown = f"{found}\n  chroma   {theirs}\n  pgchroma {own}"
        if step.differs is None:
            if found:
                yield step, shown
        elif not found:
            yield step, f"no difference any more ({step.differs.title})\n  both {own}"
        elif own.status != (step.ours or own.status):
            yield step, f"our status should be {step.ours}\n{shown}"
        elif own.status in (0, 500):
            yield step, f"no deviation excuses a failure\n{shown}"


def _difference(step: Step, theirs: Answer, own: Answer, comparison: _Comparison) -> str:
    if theirs.status != own.status:
        return f"status {theirs.status} against {own.status}"
    if theirs.body is None and theirs.status >= 400:
        # Upstream's router says nothing; ours may.
        return ""
    left, right = _reduced(step, theirs.body), _reduced(step, own.body)
    if (
        theirs.status >= 400
        and isinstance(left, dict)
        and isinstance(right, dict)
        and right["message"].startswith(left["message"])
    ):
        # Ours may go on to say what is wrong in particular.
        right["message"] = left["message"]
    if step.unordered and isinstance(left, list) and isinstance(right, list):
        left, right = sorted(left, key=_sorted_by), sorted(right, key=_sorted_by)
    return _unlike(comparison.normal(left, 0), comparison.normal(right, 1), "")


def _sorted_by(value: Any) -> str:
    return str(value.get("name") if isinstance(value, dict) else value)


def _reduced(step: Step, body: Any) -> Any:
    if not isinstance(body, dict):
        return body
    reduced = {key: value for key, value in body.items() if step.only is None or key in step.only}
    if isinstance(reduced.get("message"), str) and "error" in body:
        reduced["message"] = _PLACE.sub("", _PARSER_WORDS.sub(r"\1", reduced["message"]))
    if "nanosecond heartbeat" in reduced:
        reduced["nanosecond heartbeat"] = "now"
    return reduced


def _unlike(left: Any, right: Any, place: str) -> str:
    """Return where two JSON values differ in type or value, or an empty string; distances may differ by rounding."""
    if isinstance(left, dict) and isinstance(right, dict):
        if left.keys() != right.keys():
            return f"{place or 'body'}: members {sorted(left)} against {sorted(right)}"
        return next(filter(None, (_unlike(left[key], right[key], f"{place}.{key}") for key in left)), "")
    if isinstance(left, list) and isinstance(right, list):
        if len(left) != len(right):
            return f"{place or 'body'}: {len(left)} entries against {len(right)}"
        return next(
            filter(
                None,
                (_unlike(*pair, f"{place}[{n}]") for n, pair in enumerate(zip(left, right, strict=True))),
            ),
            "",
        )
    if type(left) is not type(right):
        return f"{place or 'body'}: {left!r} against {right!r}"
    if isinstance(left, float):
        if place.startswith(".distances"):
            same = math.isclose(left, right, rel_tol=DISTANCE_TOLERANCE, abs_tol=DISTANCE_TOLERANCE)
        else:
            same = struct.pack("d", left) == struct.pack("d", right)
        return "" if same else f"{place}: {left!r} against {right!r}"
    return "" if left == right else f"{place or 'body'}: {left!r} against {right!r}"
