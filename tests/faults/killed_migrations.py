"""Migrations killed with -9 at random moments and resumed, and beside them a copy without checkpoints, which has to fail.

    PYTHONPATH=tests python -m faults.killed_migrations [--times 10] [--folder DIR]

Every run is killed at least once and up to three times. Afterwards each record has to be in the target once. The control copies the same folder in
the same batches, begins anew after each kill, and must lose or double records: otherwise the kills proved nothing.
"""

import random
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import click
import psycopg

from pgchroma.server.embedded import temporary_postgres
from support import chroma
from support.command import Outcome, pgchroma
from support.postgres import Databases

_BATCH = 15
_KILL = """
import os, signal, threading
import pgchroma.migrate.chroma.reading as reading
from pgchroma.migrate.sink import StoreSink
reading.PAGE_RECORDS = {batch}
prepare, first = StoreSink.prepare, True

async def instrumented(self, *arguments):
    global first
    if first:
        first = False
        def end():
            threading.Event().wait({delay})
            os.kill(os.getpid(), signal.SIGKILL)
        threading.Thread(target=end, daemon=True).start()
    return await prepare(self, *arguments)

StoreSink.prepare = instrumented

from pgchroma.migrate import receipt
write_receipt = receipt.write

def wait_to_be_killed(path, content):
    # The first attempt does not end before it is killed; a later one that is quicker than that may.
    if {wait} and "result" in content:
        threading.Event().wait(60)
    write_receipt(path, content)

receipt.write = wait_to_be_killed
"""
# What people write: no checkpoint, no transaction around batch and progress, and after a crash the loop runs once more.
_CONTROL = """
import json, sys
from pathlib import Path
import psycopg
import pgchroma.migrate.chroma.reading as reading
from pgchroma.migrate.chroma.folder import open_folder
reading.PAGE_RECORDS = {batch}
with open_folder(Path(sys.argv[1])) as source, psycopg.connect(sys.argv[2], autocommit=True) as connection:
    connection.execute("CREATE TABLE IF NOT EXISTS copied (path text, id bytea)")
    sys.stdout.write("copying\\n")
    sys.stdout.flush()
    for collection in source.collections():
        for page in source.records(collection):
            for record in page:
                connection.execute("INSERT INTO copied VALUES (%s, %s)", [collection.path, record.id.encode()])
"""


def _killed(folder: Path, url: str, receipt: Path, delay: float, verb: tuple[object, ...]) -> Outcome:
    prelude = _KILL.format(batch=_BATCH, delay=delay, wait=verb[0] == "run")
    return pgchroma(
        "migrate",
        *verb,
        "--database-url",
        url,
        "--receipt",
        receipt,
        prelude=prelude,
        TMPDIR=str(receipt.parent),
    )


def ours(
    folder: Path, url: str, work: Path, dice: random.Random, wanted: set[tuple[str, str]]
) -> tuple[int, int, int]:
    """Kill and resume one migration; return (kills, records lost, records doubled)."""
    receipt = work / "receipt.json"
    kills = 0
    verb: tuple[object, ...] = ("run", folder)
    for _ in range(3):
        done = _killed(folder, url, receipt, dice.uniform(0.0, 0.6), verb)
        if done.code != -signal.SIGKILL:
            break
        kills += 1
        verb = ("resume",) if _begun(url) else ("run", folder)
    if _begun(url) and not receipt.exists():
        pgchroma("migrate", "resume", "--database-url", url, "--receipt", receipt)
    verified = pgchroma("migrate", "verify", folder, "--to", url)
    if verified.code:
        raise click.ClickException(verified.stderr)
    found = _present(url)
    return kills, len(wanted - set(found)), len(found) - len(set(found))


def _begun(url: str) -> bool:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(*) FROM pgchroma.migration_status").fetchone()
        return bool(row and row[0])


def _present(url: str) -> list[tuple[str, str]]:
    import asyncio

    from pgchroma.store import Store

    async def read() -> list[tuple[str, str]]:
        async with await Store.open(url) as store:
            return [
                (item.path, record.id)
                for item in await store.list_collections()
                async for page in store.iter_records(item)
                for record in page
            ]

    return asyncio.run(read())


def control(folder: Path, url: str, dice: random.Random, wanted: set[tuple[str, str]]) -> tuple[int, int]:
    """Kill the copy without checkpoints once and run it again; return (records lost, records doubled)."""
    command = [sys.executable, "-c", _CONTROL.format(batch=_BATCH), str(folder), url]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        threading.Event().wait(dice.uniform(0.02, 0.1))
        process.kill()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT path, id FROM copied").fetchall()
    found = [(path, bytes(name).decode()) for path, name in rows]
    return len(wanted - set(found)), len(found) - len(set(found))


def measure(times: int, seed: int = 1) -> tuple[list[tuple[int, int, int]], list[tuple[int, int]]]:
    """Return what became of so many killed migrations, and of as many killed controls."""
    dice = random.Random(seed)
    wanted = {(path, row["id"]) for path, item in chroma.expected("1.5.9").items() for row in item.rows}
    results, controls = [], []
    with temporary_postgres() as postgres, tempfile.TemporaryDirectory() as name:
        databases = Databases(postgres)
        folder = chroma.extract("1.5.9", Path(name))
        for number in range(times):
            work = Path(name) / str(number)
            work.mkdir()
            with databases.fresh() as url:
                results.append(ours(folder, url, work, dice, wanted))
            with databases.fresh() as url:
                controls.append(control(folder, url, dice, wanted))
            click.echo(f"run {number + 1}: killed {results[-1][0]} times, lost {results[-1][1]}, doubled {results[-1][2]}; "
                       f"control: lost {controls[-1][0]}, doubled {controls[-1][1]}")  # fmt: skip
    return results, controls


@click.command(help=__doc__)
@click.option("--times", default=10, show_default=True, help="Migrations to kill.")
def main(times: int) -> None:
    """Kill, resume, count."""
    results, controls = measure(times)
    lost, doubled = sum(item[1] for item in results), sum(item[2] for item in results)
    wrong = sum(1 for item in controls if any(item))
    click.echo(
        f"{times} migrations, {sum(item[0] for item in results)} kills: {lost} lost, {doubled} doubled"
    )
    click.echo(f"control without checkpoints: wrong in {wrong} of {times}")
    if lost or doubled or not wrong or not all(item[0] for item in results):
        sys.exit(1)


if __name__ == "__main__":
    main()
