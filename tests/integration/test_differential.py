"""The same raw requests to `chroma run` and to ours: the answers agree but where the table says that they do not, and why."""

import random
from collections import Counter
from collections.abc import Iterator

import pytest

from conformance.differential.model import Player, Scenario, differences
from conformance.differential.patterns import TEXTS, pattern
from conformance.differential.table import SCENARIOS
from pgchroma.errors import InvalidArgumentError
from pgchroma.store.regex import Regex
from support.api import COLLECTIONS, Api
from support.server import ServerProcess
from support.stock import running_chroma

PATTERNS = 600


@pytest.fixture(scope="module")
def chroma(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Chroma's own server."""
    with running_chroma(tmp_path_factory.mktemp("chroma")) as process:
        yield process


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_answers_agree(chroma: ServerProcess, server: ServerProcess, scenario: Scenario) -> None:
    answers = [Player(process.port).play(scenario) for process in (chroma, server)]
    assert [f"{step}\n  {what}" for step, what in differences(scenario, *answers)] == []


def test_a_difference_is_noticed(chroma: ServerProcess, server: ServerProcess) -> None:
    """The comparison can fail: the same scenario with one answer changed, and with one deviation that is none."""
    scenario = next(scenario for scenario in SCENARIOS if scenario.name == "foreign")
    answers = Player(server.port).play(Scenario("noticed", scenario.steps))
    assert list(differences(scenario, answers, answers)) == []
    assert len(list(differences(scenario, answers, [answers[1], *answers[1:]]))) == 1


def test_random_patterns_find_the_same(chroma: ServerProcess) -> None:
    """Our engine against Rust's own, on texts in several alphabets; a pattern that is refused there is refused here."""
    api = Api(chroma.port)
    collection = api("POST", COLLECTIONS, {"name": "patterns"})[1]["id"]
    ids = [str(number) for number in range(len(TEXTS))]
    body = {"ids": ids, "embeddings": [[1]] * len(ids), "documents": TEXTS}
    assert api("POST", f"{COLLECTIONS}/{collection}/add", body)[0] == 201
    source = random.Random(7)
    outcomes = Counter[str]()
    for _ in range(PATTERNS):
        text = pattern(source)
        clause = {"where_document": {"$regex": text}, "include": []}
        status, answer, _ = api("POST", f"{COLLECTIONS}/{collection}/get", clause)
        expected = [TEXTS[int(number)] for number in answer["ids"]] if status == 200 else None
        try:
            regex = Regex(text)
            found = [document for document in TEXTS if regex.matches(document)]
        except InvalidArgumentError:
            found = None
        assert found == expected, text
        outcomes["refused" if found is None else "matched" if found else "nothing"] += 1
    assert min(outcomes.values()) > PATTERNS / 20, outcomes
