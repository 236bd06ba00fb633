"""The same raw requests to `chroma run` and to ours: the answers agree but where the table says that they do not, and why."""

from collections.abc import Iterator

import pytest

from conformance.differential.model import Player, Scenario, differences
from conformance.differential.table import SCENARIOS
from support.server import ServerProcess
from support.stock import running_chroma


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
