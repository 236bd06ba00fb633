"""`make faults`: every fault under a storm of writes, and what became of the acknowledged ones."""

import json
import time
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from faults.scenarios import SCENARIOS, Scenario
from support.storm import NEW, Outcome

_RECORDS = NEW + 5


def verdict(scenario: Scenario, outcome: Outcome) -> bool:
    """Whether a scenario ended as it must: a control with losses, any other without."""
    if scenario.is_control:
        return outcome.lost > 0
    return outcome.is_sound


@click.command()
@click.option(
    "--times", type=click.IntRange(1), help="How often each fault strikes; as the scenario says if not given."
)
@click.option("--only", help="Only scenarios with this in their name.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/faults.json"), show_default=True)
def main(times: int | None, only: str | None, out: Path) -> None:
    """Break things while six clients write, and count what was acknowledged and lost."""
    table = Table(title=f"batches of {_RECORDS} records", show_lines=True)
    for heading in (
        "fault",
        "acknowledged",
        "in doubt",
        "lost",
        "in part",
        "surprises",
        "longest gap",
        "as it must be",
    ):
        table.add_column(heading)
    rows = []
    failed = []
    for scenario in SCENARIOS:
        if only is not None and only not in scenario.name:
            continue
        started = time.monotonic()
        outcome = scenario.play(times=times)
        good = verdict(scenario, outcome)
        click.echo(f"  {scenario.name}: {time.monotonic() - started:.0f} s", err=True)
        for surprise in outcome.surprises[:3]:
            click.echo(f"    {surprise}", err=True)
        table.add_row(
            scenario.name,
            f"{outcome.acknowledged:,}",
            f"{outcome.doubtful:,}",
            f"{outcome.lost:,}",
            f"{outcome.partial + outcome.invented:,}",
            f"{len(outcome.surprises):,}",
            f"{outcome.longest_gap:.1f} s",
            "yes" if good else "NO",
        )
        rows.append({"fault": scenario.name, "control": scenario.is_control, "good": good, **asdict(outcome)})
        if not good:
            failed.append(scenario.name)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(rows, indent=1) + "\n")
    Console(width=140).print(table)
    click.echo(f"written to {out}")
    if failed:
        raise click.ClickException(f"not as it must be: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
