"""Plays every scenario against `chroma run` and against ours: `python -m conformance.differential.run`, or `make conformance-diff`."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from conformance.differential.model import Player, differences
from conformance.differential.table import SCENARIOS
from pgchroma.server.embedded import temporary_postgres
from support.postgres import Databases
from support.server import running_server
from support.stock import running_chroma


@click.command()
@click.argument("names", nargs=-1)
def main(names: Sequence[str]) -> None:
    """Play the scenarios NAMES (default: all) against both servers and report what differs."""
    unknown = set(names) - {scenario.name for scenario in SCENARIOS}
    if unknown:
        raise click.UsageError(f"no such scenario: {', '.join(sorted(unknown))}")
    wrong = requests = explained = 0
    with (
        tempfile.TemporaryDirectory(prefix="pgchroma-differential-") as folder,
        temporary_postgres() as postgres,
        Databases(postgres).fresh() as url,
        running_server(url, Path(folder), workers=2, environment={"PGCHROMA_AUTH": "off"}) as ours,
        running_chroma(Path(folder)) as upstream,
    ):
        for scenario in SCENARIOS:
            if names and scenario.name not in names:
                continue
            requests += len(scenario.steps)
            explained += sum(step.differs is not None for step in scenario.steps)
            for step, what in differences(
                scenario, Player(upstream.port).play(scenario), Player(ours.port).play(scenario)
            ):
                wrong += 1
                click.echo(f"{scenario.name}: {step}\n  {what}")
    click.echo(
        f"{requests} requests, {explained} with a deviation on purpose, {wrong} that differ otherwise than stated"
    )
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
