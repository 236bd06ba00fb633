"""A storm of writes over HTTP while something breaks: nothing that was acknowledged is lost, nothing is there by halves.

The quick part of `make faults`; the controls break the promise on purpose and must be found out.
"""

import pytest

from faults.main import verdict
from faults.scenarios import SCENARIOS, Scenario

_QUICK = [
    scenario
    for scenario in SCENARIOS
    if scenario.is_control or scenario.name.startswith(("a worker", "all of PostgreSQL", "the pool"))
]


@pytest.mark.parametrize("scenario", _QUICK, ids=lambda scenario: str(scenario.name))
def test_acknowledged_writes_survive(scenario: Scenario) -> None:
    outcome = scenario.play(times=1)
    assert outcome.acknowledged > 0
    assert verdict(scenario, outcome), outcome
