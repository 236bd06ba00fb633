"""An application with 200,000 messages: killed on the way and resumed, every row proven, looked at a second time without the proof."""

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgchroma.server.embedded import temporary_postgres
from support import application
from support.command import pgchroma
from support.tables import scalar

MESSAGES = 200_000
_KILL = """
import os, signal
from pgchroma.migrate.tables import status
count, advance = 0, status.advance

def instrumented(*arguments, **kwargs):
    global count
    advance(*arguments, **kwargs)
    count += 1
    if count == 7:
        os.kill(os.getpid(), signal.SIGKILL)

status.advance = instrumented
"""
# What of each table is compared here, in an order that both sides have: by bytes.
_LOOKED_AT = {
    "users": ("id, email, display_name, is_active, preferences, avatar", "id"),
    "sessions": ("id, user_id, title, started_at, context", "id {bytes}"),
    "messages": ('id, session_id, "Order", role, content, metadata, score', "id"),
    "insights": ("user_id, key, value, confidence", "user_id, key {bytes}"),
    "summaries": ("session_id, body, keywords", "session_id {bytes}, body {bytes}"),
}
_JSON = {"preferences", "context", "metadata", "keywords"}


@pytest.fixture(scope="module")
def target() -> Iterator[psycopg.Connection[Any]]:
    with (
        temporary_postgres() as postgres,
        psycopg.connect(postgres.url(), autocommit=True) as connection,
    ):
        yield connection


def digest(rows: Iterable[tuple[Any, ...]], columns: list[str], *, parse: bool) -> str:
    found = hashlib.sha256()
    for row in rows:
        for name, cell in zip(columns, row, strict=True):
            value = json.loads(cell) if parse and name in _JSON and cell is not None else cell
            if name in _JSON:
                value = json.dumps(value, sort_keys=True)
            found.update(repr(bool(value) if name == "is_active" else value).encode() + b";")
    return found.hexdigest()


def test_two_hundred_thousand_messages_and_what_belongs_to_them(target: Any, tmp_path: Path) -> None:
    source = application.make(tmp_path / "app.db", messages=MESSAGES)
    url, receipt = target.info.dsn, tmp_path / "receipt.json"
    given = ("--database-url", url, "--receipt", receipt, "--format", "json")
    killed = pgchroma("tables", "run", source, "--schema", "app", *given, prelude=_KILL)
    assert killed.code == -9
    begun = pgchroma("tables", "status", "--database-url", url, "--format", "json").json[0]
    assert 0 < sum(table["rows_read"] for table in begun["tables"]) < MESSAGES
    done = pgchroma("tables", "resume", *given)
    assert done.code == 0, done.stderr
    assert (done.json["result"], done.json["rows"]) == ("equal", 226_000)
    assert {item["table"]: item["target_rows"] for item in done.json["tables"]} == {
        "users": 1_000, "sessions": 10_000, "messages": MESSAGES, "insights": 4_000, "summaries": 11_000,
    }  # fmt: skip

    with contextlib.closing(sqlite3.connect(source)) as origin:
        for table, (names, order) in _LOOKED_AT.items():
            columns = [name.strip(' "') for name in names.split(",")]
            query = f"SELECT {names} FROM {{table}} ORDER BY {order}"  # noqa: S608 - names of our own
            mine = origin.execute(query.format(table=table, bytes="COLLATE BINARY"))
            theirs = target.execute(query.format(table=f"app.{table}", bytes='COLLATE "C"'))
            assert digest(mine, columns, parse=True) == digest(theirs, columns, parse=False), table
    assert (
        scalar(
            target,
            "SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND convalidated AND connamespace = 'app'::regnamespace",
        )
        == 4
    )
    assert scalar(target, "INSERT INTO app.users (email) VALUES ('new@example.org') RETURNING id") == 1_101
