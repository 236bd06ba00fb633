"""An application's SQLite tables in PostgreSQL: every row proven, every value that does not fit named, nothing lost to interruptions."""

import contextlib
import json
import sqlite3
import subprocess
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgchroma.exit_codes import ExitCode
from pgchroma.migrate.receipt import FORMAT
from support import application
from support.command import here
from support.tables import edited, run, scalar, tables

TABLES = {"users", "sessions", "messages", "insights", "summaries"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return application.make(tmp_path / "app.db", messages=2_000)


@pytest.fixture
def target(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def mixed_database(path: Path) -> Path:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER, name TEXT)")
        connection.executemany(
            "INSERT INTO t VALUES (?,?,?)",
            [
                (1, 1, "a"),
                (2, "two", "b"),
                (3, 3.5, "c"),
                (4, None, "nul\x00here"),
                (5, 2**62, "e"),
                (6, b"\xff", "f"),
            ],
        )
    return path


def test_every_row_of_an_application_arrives(
    source: Path, database_url: str, target: Any, tmp_path: Path
) -> None:
    before = source.read_bytes()
    done = run(source, database_url, tmp_path)
    assert done.code == 0, done.stderr
    assert done.json["result"] == "equal"
    assert {item["table"] for item in done.json["tables"]} == TABLES
    assert source.read_bytes() == before
    with contextlib.closing(sqlite3.connect(source)) as origin:
        for name in TABLES:
            assert (
                scalar(target, f"SELECT count(*) FROM app.{name}")  # noqa: S608 - a name of our own
                == origin.execute(f"SELECT count(*) FROM {name}").fetchone()[0]  # noqa: S608 - a name of our own
            )
        mine = origin.execute(
            'SELECT id, session_id, "Order", role, content, metadata, score, sent_at FROM messages ORDER BY id'
        ).fetchall()
    theirs = target.execute(
        'SELECT id, session_id, "Order", role, content, metadata, score, sent_at FROM app.messages ORDER BY id'
    ).fetchall()
    # An independent look at what the proof says: values, types, floats bit for bit, JSON by content.
    for a, b in zip(mine, theirs, strict=True):
        assert a[:5] == b[:5]
        assert (json.loads(a[5]) if a[5] else None) == b[5]
        assert a[6] == b[6]
        assert a[7][:19] == b[7].isoformat()[:19]


def test_types_keys_and_numbering_are_the_applications(
    source: Path, database_url: str, target: Any, tmp_path: Path
) -> None:
    assert run(source, database_url, tmp_path).code == 0
    types = dict(
        target.execute(
            "SELECT table_name || '.' || column_name, data_type FROM information_schema.columns WHERE table_schema = 'app'"
        ).fetchall()
    )
    expected = {
        "users.id": "bigint", "users.email": "character varying", "users.is_active": "boolean", "users.preferences": "jsonb",
        "users.balance": "numeric", "users.avatar": "bytea", "users.created_at": "timestamp without time zone",
        "sessions.started_at": "bigint", "messages.Order": "bigint", "messages.score": "double precision",
        "messages.metadata": "jsonb", "insights.value": "jsonb", "summaries.day": "date", "summaries.keywords": "jsonb",
    }  # fmt: skip
    assert {key: types[key] for key in expected} == expected
    users = scalar(target, "SELECT count(*) FROM app.users")
    assert (
        scalar(target, "INSERT INTO app.users (email) VALUES ('new@example.org') RETURNING id") == users + 101
    )
    row = target.execute(
        "SELECT is_active, preferences, balance, created_at IS NOT NULL FROM app.users ORDER BY id DESC LIMIT 1"
    )
    assert row.fetchone() == (True, {}, 0, True)
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        target.execute("INSERT INTO app.sessions (id, user_id) VALUES ('x', 999999)")
    with pytest.raises(psycopg.errors.UniqueViolation):
        target.execute("INSERT INTO app.users (email) VALUES ('user1@example.org')")
    target.execute("DELETE FROM app.sessions WHERE id = 's-00000001'")
    assert scalar(target, "SELECT count(*) FROM app.messages WHERE session_id = 's-00000001'") == 0
    assert (
        scalar(
            target,
            "SELECT count(*) FROM pg_indexes WHERE schemaname = 'app' AND indexname = 'idx_messages_role'",
        )
        == 1
    )


def test_the_plan_says_what_is_not_moved_and_writes_nothing(
    source: Path, database_url: str, target: Any
) -> None:
    done = tables("plan", source, "--database-url", database_url, "--format", "json")
    assert done.code == 0, done.stderr
    assert any("view active_users" in note for note in done.json["notes"])
    assert scalar(
        target, "SELECT to_regclass('public.users') IS NULL AND to_regnamespace('pgchroma_migration') IS NULL"
    )


def test_a_dry_run_shows_the_statements_and_writes_nothing(
    source: Path, database_url: str, target: Any, tmp_path: Path
) -> None:
    done = run(source, database_url, tmp_path, "--dry-run")
    assert done.code == 0, done.stderr
    assert any(statement.startswith('CREATE TABLE "app"."users"') for statement in done.json["statements"])
    assert scalar(target, "SELECT to_regnamespace('app') IS NULL")


def test_values_that_do_not_fit_are_named_one_by_one(database_url: str, target: Any, tmp_path: Path) -> None:
    source = mixed_database(tmp_path / "mixed.db")
    refused = run(source, database_url, tmp_path)
    assert refused.code == ExitCode.REFUSED
    assert "t.n (bigint): 3 values" in refused.stderr
    assert "'two' in row 2" in refused.stderr
    assert "t.name (text): 1 values" in refused.stderr
    assert scalar(target, "SELECT to_regclass('app.t') IS NULL")
    plan = tables("plan", source, "--format", "json").json
    assert not plan["runnable"]
    assert [(value["key"], value["storage"], value["value"]) for value in plan["misfits"][0]["values"]] == [
        ([2], "text", "'two'"),
        ([3], "real", "3.5"),
        ([6], "blob", "x'ff'"),
    ]


def test_values_that_decide_about_a_columns_type_are_named_one_by_one(
    database_url: str, target: Any, tmp_path: Path
) -> None:
    source = tmp_path / "mixed.db"
    with contextlib.closing(sqlite3.connect(source)) as connection, connection:
        connection.execute(
            "CREATE TABLE t (id INTEGER PRIMARY KEY, doc JSON, at TIMESTAMP, any, plain, name VARCHAR(3), pic BLOB DEFAULT x'00fF')"
        )
        connection.execute("CREATE INDEX newest ON t (name, at DESC)")
        rows: list[tuple[Any, ...]] = [("{}", "2025-01-01 10:00:00", n, n, "abc") for n in range(30)]
        rows[6] = ("{not json", "2025-01-01 10:00:00", "six", 6, "abc")
        rows[8] = ("[]", "yesterday", b"\x08", 8, "abcd")
        connection.executemany("INSERT INTO t (doc, at, any, plain, name) VALUES (?,?,?,?,?)", rows)
        connection.execute("UPDATE t SET any = 'eight' WHERE id = 9")
    plan = tables("plan", source, "--format", "json").json
    assert plan["runnable"]
    found = {
        item["column"]: (
            item["expected"],
            item["suggested"],
            [(value["key"], value["storage"], value["value"]) for value in item["values"]],
        )
        for item in plan["deviations"]
    }
    assert found == {
        "doc": ("jsonb", "text", [([7], "text", "'{not json'")]),
        "at": ("timestamp", "text", [([9], "text", "'yesterday'")]),
        "any": ("bigint", "jsonb", [([7], "text", "'six'"), ([9], "text", "'eight'")]),
        "name": ("varchar(3)", "text", [([9], "text", "'abcd'")]),
    }
    assert any(
        "t.plain is declared without a type; bigint is what its values are" in note for note in plan["notes"]
    )
    text = tables("plan", source, "--write-mapping", tmp_path / "mapping.yml")
    assert "t.doc is declared JSON; 1 value is no jsonb, so text is suggested" in text.stdout
    assert "  row 7: text '{not json'" in text.stdout
    assert "#   row 9: text 'yesterday'" in (tmp_path / "mapping.yml").read_text()
    assert run(source, database_url, tmp_path).code == 0
    assert scalar(target, "INSERT INTO app.t (id) VALUES (99) RETURNING pic") == b"\x00\xff"
    assert scalar(target, "SELECT indexdef FROM pg_indexes WHERE indexname = 'newest'").endswith(
        "(name, at DESC)"
    )


def test_rows_can_go_to_quarantine_whole(database_url: str, target: Any, tmp_path: Path) -> None:
    source = mixed_database(tmp_path / "mixed.db")

    def edit(data: Any) -> None:
        data["t"]["columns"]["n"]["on_misfit"] = "quarantine"
        data["t"]["columns"]["name"]["on_nul"] = "replace"

    done = run(source, database_url, tmp_path, "--mapping", edited(source, tmp_path, edit))
    assert done.code == 0, done.stderr
    assert target.execute("SELECT id, n, name FROM app.t ORDER BY id").fetchall() == [
        (1, 1, "a"), (4, None, "nul\u2400here"), (5, 2**62, "e"),
    ]  # fmt: skip
    kept = target.execute(
        "SELECT source_key, source_row FROM pgchroma_migration.quarantine ORDER BY 1"
    ).fetchall()
    assert [key for key, _ in kept] == [[2], [3], [6]]
    assert bytes.fromhex(kept[0][1]["n"][1]).decode() == "two"
    assert kept[1][1]["n"] == ["real", "3.5"]
    assert kept[2][1]["n"] == ["blob", "ff"]
    assert done.json["tables"][0]["quarantined"] == 3


def test_values_can_be_kept_in_jsonb_or_text_or_become_null(
    database_url: str, target: Any, tmp_path: Path
) -> None:
    source = tmp_path / "mixed.db"
    mixed_database(source)
    with contextlib.closing(sqlite3.connect(source)) as connection, connection:
        connection.execute("DELETE FROM t WHERE id IN (4, 6)")

    for schema, change, expected in (
        ("as_json", {"type": "jsonb", "convert": "scalar"}, [1, "two", 3.5, 2**62]),
        ("as_text", {"type": "text", "convert": "text"}, ["1", "two", "3.5", str(2**62)]),
        ("as_null", {"on_misfit": "null"}, [1, None, None, 2**62]),
    ):

        def edit(data: Any, change: dict[str, str] = change) -> None:
            data["t"]["columns"]["n"] |= change

        path = edited(source, tmp_path, edit, f"{schema}.yml")
        path.write_text(path.read_text().replace("schema: app", f"schema: {schema}"))
        done = run(source, database_url, tmp_path, "--mapping", path)
        assert done.code == 0, done.stderr
        rows = target.execute(f"SELECT n FROM {schema}.t ORDER BY id").fetchall()  # noqa: S608 - a name of our own
        assert [row[0] for row in rows] == expected


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda t: t["t"].pop("columns"), "t.id is not in the mapping"),
        (lambda t: t["t"]["columns"].pop("name"), "t.name is not in the mapping"),
        (lambda t: t.pop("t"), "the table t is not in the mapping"),
        (lambda t: t["t"]["columns"]["n"].update(type="int8range"), "int8range"),
        (lambda t: t["t"]["columns"]["n"].update(on_misfit="ignore"), "'ignore'"),
        (lambda t: t["t"]["columns"]["n"].update(target="x" * 64), "cannot be a name"),
        (lambda t: t["t"]["columns"]["n"].update(target="id"), "same target"),
        (lambda t: t["t"].update(colums={}), "unknown key 'colums'"),
        (lambda t: t["t"].update(primary_key=["nope"]), "'nope'"),
    ],
)
def test_a_wrong_mapping_is_refused_by_name(
    edit: Any, says: str, database_url: str, target: Any, tmp_path: Path
) -> None:
    source = mixed_database(tmp_path / "mixed.db")
    done = run(source, database_url, tmp_path, "--mapping", edited(source, tmp_path, edit))
    assert done.code == ExitCode.CONFIGURATION
    assert says in done.stderr
    assert scalar(target, "SELECT to_regnamespace('app') IS NULL")


def test_a_table_that_holds_rows_is_not_touched_unless_told_how(
    source: Path, database_url: str, target: Any, tmp_path: Path
) -> None:
    assert run(source, database_url, tmp_path).code == 0
    again = run(source, database_url, tmp_path)
    assert again.code == ExitCode.REFUSED
    assert "app.insights exists and holds rows" in again.stderr
    target.execute("UPDATE app.messages SET content = 'edited' WHERE id = 11")
    target.execute("DELETE FROM app.messages WHERE id = 12")
    without_key = [name for name in TABLES if name == "summaries"]

    def edit(policy: str) -> Any:
        def change(data: Any) -> None:
            for name, table in data.items():
                table.update({"skip": True} if name in without_key else {"on_conflict": policy})

        return change

    skipped = run(
        source, database_url, tmp_path, "--mapping", edited(source, tmp_path, edit("skip"), "skip.yml")
    )
    assert skipped.code == 0, skipped.stderr
    assert scalar(target, "SELECT content FROM app.messages WHERE id = 11") == "edited"
    assert scalar(target, "SELECT count(*) FROM app.messages WHERE id = 12") == 1
    assert {item["table"]: item["kept"] for item in skipped.json["tables"]}["messages"] == 1
    updated = run(
        source, database_url, tmp_path, "--mapping", edited(source, tmp_path, edit("update"), "update.yml")
    )
    assert updated.code == 0, updated.stderr
    assert scalar(target, "SELECT content FROM app.messages WHERE id = 11") != "edited"
    assert scalar(target, "SELECT count(*) FROM app.messages") == 2_000


def test_names_may_hold_what_means_something_to_the_driver(
    database_url: str, target: Any, tmp_path: Path
) -> None:
    source = tmp_path / "names.db"
    with contextlib.closing(sqlite3.connect(source)) as connection, connection:
        connection.execute('CREATE TABLE "100%s {t}" ("%(id)s" INTEGER PRIMARY KEY, "{0} %" TEXT)')
        connection.execute("INSERT INTO \"100%s {t}\" VALUES (7, 'seven')")

    def edit(data: Any) -> None:
        data["100%s {t}"]["on_conflict"] = "update"

    assert run(source, database_url, tmp_path).code == 0
    again = run(source, database_url, tmp_path, "--mapping", edited(source, tmp_path, edit))
    assert again.code == 0, again.stderr
    row = target.execute("INSERT INTO app.\"100%s {t}\" VALUES (DEFAULT, 'eight') RETURNING *").fetchone()
    assert row == (8, "eight")


def test_rows_without_a_parent_are_counted_and_the_mapping_decides(
    database_url: str, target: Any, tmp_path: Path
) -> None:
    source = tmp_path / "orphans.db"
    with contextlib.closing(sqlite3.connect(source)) as connection, connection:
        connection.execute("CREATE TABLE parent (id INTEGER PRIMARY KEY)")
        connection.execute("CREATE TABLE child (id INTEGER PRIMARY KEY, parent INTEGER REFERENCES parent)")
        connection.executemany("INSERT INTO child VALUES (?,?)", [(1, 7), (2, None)])
    stopped = run(source, database_url, tmp_path)
    assert stopped.code == ExitCode.VERIFICATION_FAILED
    assert "child(parent): 1 rows refer" in stopped.stderr
    target.execute("DROP SCHEMA app CASCADE")

    def edit(data: Any) -> None:
        data["child"]["on_orphan"] = "not_valid"

    done = run(source, database_url, tmp_path, "--mapping", edited(source, tmp_path, edit))
    assert done.code == 0, done.stderr
    assert done.json["orphans"] == {"child_fkey1": 1}
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        target.execute("INSERT INTO app.child VALUES (3, 9)")


def test_a_foreign_key_between_two_types_takes_over_the_parents(
    database_url: str, target: Any, tmp_path: Path
) -> None:
    source = tmp_path / "keys.db"
    with contextlib.closing(sqlite3.connect(source)) as connection, connection:
        connection.execute("CREATE TABLE users (ID INTEGER PRIMARY KEY, handle TEXT UNIQUE)")
        # Text and numbers that SQLite takes for equal; another case of the name, too.
        connection.execute(
            "CREATE TABLE sessions (id TEXT PRIMARY KEY, user_id TEXT DEFAULT '1' REFERENCES users(id))"
        )
        connection.execute(
            "CREATE TABLE notes (user_id VARCHAR(9) REFERENCES sessions(user_id), tag INTEGER REFERENCES users(HANDLE))"
        )
        connection.execute("CREATE UNIQUE INDEX one ON sessions (user_id)")
        connection.execute("INSERT INTO users VALUES (1, '77'), (2, 'b')")
        connection.execute("INSERT INTO sessions VALUES ('s', '1'), ('t', '2'), ('u', NULL)")
        connection.execute("INSERT INTO notes VALUES ('2', 77)")
    plan = tables("plan", source, "--format", "json")
    assert any(
        "sessions.user_id is declared TEXT and refers to users; bigint" in note for note in plan.json["notes"]
    )
    done = run(source, database_url, tmp_path)
    assert done.code == 0, done.stderr
    assert target.execute("SELECT user_id FROM app.sessions ORDER BY id").fetchall() == [(1,), (2,), (None,)]
    assert target.execute("SELECT user_id, tag FROM app.notes").fetchall() == [(2, "77")]
    assert (
        scalar(
            target,
            "SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND convalidated AND connamespace = 'app'::regnamespace",
        )
        == 3
    )


def test_a_foreign_key_that_postgresql_cannot_have_is_a_note_and_a_refusal(
    database_url: str, target: Any, tmp_path: Path
) -> None:
    source = tmp_path / "keys.db"
    with contextlib.closing(sqlite3.connect(source)) as connection, connection:
        connection.execute("CREATE TABLE users (id INTEGER PRIMARY KEY)")
        connection.execute("CREATE TABLE sessions (id TEXT PRIMARY KEY, user_id TEXT REFERENCES users(id))")
        connection.execute("INSERT INTO sessions VALUES ('s', '007'), ('t', 'anonymous')")
        # To two tables of different types at once: one of the keys has to go.
        connection.execute("CREATE TABLE both (x TEXT REFERENCES users(id) REFERENCES sessions(id))")
    plan = tables("plan", source, "--format", "json")
    assert any(
        "sessions: a foreign key to users is not moved: user_id is text" in note
        for note in plan.json["notes"]
    )

    def edit(data: Any) -> None:
        data["sessions"]["foreign_keys"] = [{"columns": ["user_id"], "references": "users", "to": ["id"]}]

    refused = run(source, database_url, tmp_path, "--mapping", edited(source, tmp_path, edit))
    assert refused.code == ExitCode.CONFIGURATION
    assert "from user_id, which is text, to users.id, which is bigint" in refused.stderr
    assert scalar(target, "SELECT to_regnamespace('app') IS NULL")
    assert run(source, database_url, tmp_path).code == 0


def test_a_foreign_key_that_a_table_of_the_targets_does_not_allow_is_no_traceback(
    database_url: str, target: Any, tmp_path: Path
) -> None:
    source = tmp_path / "keys.db"
    with contextlib.closing(sqlite3.connect(source)) as connection, connection:
        connection.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT UNIQUE)")
        connection.execute("CREATE TABLE sessions (name TEXT REFERENCES users(name))")
        connection.execute("INSERT INTO users VALUES (1, 'a')")
    target.execute("CREATE SCHEMA app")
    target.execute("CREATE TABLE app.users (id bigint PRIMARY KEY, name text)")

    def edit(data: Any) -> None:
        data["users"] |= {"on_conflict": "skip", "indexes": []}

    stopped = run(source, database_url, tmp_path, "--mapping", edited(source, tmp_path, edit))
    assert stopped.code == ExitCode.VERIFICATION_FAILED
    assert "app.sessions: cannot create a foreign key: there is no unique constraint" in stopped.stderr
    target.execute("ALTER TABLE app.users ADD UNIQUE (name)")
    done = tables("resume", "--database-url", database_url, "--receipt", tmp_path / "r.json")
    assert done.code == 0, done.stderr


def test_a_changed_row_is_named_by_a_later_verification(
    source: Path, database_url: str, target: Any, tmp_path: Path
) -> None:
    assert run(source, database_url, tmp_path).code == 0
    verify = ("verify", tmp_path / "receipt.json", "--database-url", database_url, "--format", "json")
    assert tables(*verify).code == 0
    target.execute(
        "UPDATE app.messages SET score = score + 1e-15 WHERE id = (SELECT min(id) FROM app.messages WHERE score BETWEEN 0.1 AND 1)"
    )
    target.execute("DELETE FROM app.summaries WHERE ctid = (SELECT min(ctid) FROM app.summaries)")
    target.execute("INSERT INTO app.insights (user_id, key) VALUES (1, 'born later')")
    found = tables(*verify)
    assert found.code == ExitCode.VERIFICATION_FAILED
    by_table = {item["table"]: item for item in found.json["tables"]}
    assert len(by_table["messages"]["different"]) == 1
    assert len(by_table["summaries"]["missing"]) == 1
    assert by_table["insights"]["extra"] == ["1, born later"]
    assert by_table["users"]["equal"]


def test_the_log_says_what_happened_and_how_it_ended(
    source: Path, database_url: str, target: Any, tmp_path: Path
) -> None:
    def log(name: str) -> str:
        return (tmp_path / name).read_text()

    assert tables("plan", source, "--log-file", tmp_path / "plan.log").code == 0
    assert "ended: runnable True, rows 2260" in log("plan.log")
    assert run(source, database_url, tmp_path, "--log-file", tmp_path / "run.log").code == 0
    for line in (
        "begins",
        "insights.value is declared without a type",
        "messages: copied",
        "messages: 2000 rows, equal",
    ):
        assert line in log("run.log")
    assert "result equal, rows 2260, receipt " in log("run.log")
    assert run(source, database_url, tmp_path, "--log-file", tmp_path / "run.log").code == ExitCode.REFUSED
    assert "ended with exit code 9: the table app.insights exists and holds rows (fix: say in" in log(
        "run.log"
    )
    target.execute("DELETE FROM app.insights")
    verify = ("verify", tmp_path / "receipt.json", "--database-url", database_url)
    assert tables(*verify, "--log-file", tmp_path / "verify.log").code == ExitCode.VERIFICATION_FAILED
    assert "result different" in log("verify.log")
    assert "ended with exit code 8: insights: 40 missing" in log("verify.log")
    for command in (("plan", tmp_path / "nowhere"), ("cleanup", "--receipt", tmp_path / "nowhere")):
        done = here("migrate", *command, "--log-file", tmp_path / "migrate.log")
        assert f"ended with exit code {done.code}: " in log("migrate.log")
        (tmp_path / "migrate.log").unlink()
    # Without the option nothing goes on into the last one.
    assert tables("plan", tmp_path / "nowhere").code == ExitCode.SOURCE_UNREADABLE
    assert not (tmp_path / "migrate.log").exists()


def test_the_script_for_any_receipt_verifies_that_of_tables(
    source: Path, database_url: str, target: Any, tmp_path: Path
) -> None:
    assert run(source, database_url, tmp_path).code == 0
    script = Path(__file__).resolve().parents[2] / "scripts/validate_migration.py"
    command = [
        str(script),
        str(tmp_path / "receipt.json"),
        "--database-url",
        database_url,
        "--format",
        "json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {item["table"] for item in json.loads(done.stdout)["tables"]} == TABLES
    target.execute("DELETE FROM app.insights")
    assert (
        subprocess.run(command, capture_output=True, check=False).returncode == ExitCode.VERIFICATION_FAILED
    )


@pytest.mark.parametrize(
    "content", [{}, {"kind": "tables"}, {"kind": "tables", "run_id": "x"}, {"kind": "collections"}]
)
def test_a_receipt_that_is_not_whole_is_refused_by_name(
    content: Any, database_url: str, tmp_path: Path
) -> None:
    path = tmp_path / "receipt.json"
    path.write_text(json.dumps({"format": FORMAT, **content}))
    for given in ([path], ["--receipt", path]):
        refused = tables("verify", *given, "--database-url", database_url)
        assert refused.code == ExitCode.CONFIGURATION
        assert str(path) in refused.stderr


def test_values_that_text_formats_stumble_over_survive(
    database_url: str, target: Any, tmp_path: Path
) -> None:
    source = tmp_path / "nasty.db"
    texts = [
        "",
        "\\.",
        "\\N",
        "\t",
        "\r\n",
        "\\x41",
        "{}",
        "NULL",
        "a\x01b",
        "\U0010ffff",
        "'\"",
        "%s",
        "x" * 100_000,
    ]
    floats = [0.1, 0.0, 5e-324, 1.7976931348623157e308, 1e16, float("inf"), -1.5, 1 / 3]
    integers = [0, -(2**63), 2**63 - 1, 7, -1, 2**53, 2**53 + 1, 12]
    with contextlib.closing(sqlite3.connect(source)) as connection, connection:
        connection.execute('CREATE TABLE "odd ""name" (t TEXT, f REAL, i INTEGER, b BLOB, "select" TEXT)')
        connection.executemany(
            'INSERT INTO "odd ""name" VALUES (?,?,?,?,?)',
            [(text, floats[n % 8], integers[n % 8], bytes(range(256)), None) for n, text in enumerate(texts)],
        )
    done = run(source, database_url, tmp_path)
    assert done.code == 0, done.stderr
    rows = target.execute('SELECT t, f, i, b FROM app."odd ""name"').fetchall()
    assert [row[0] for row in rows] == texts
    assert [repr(row[1]) for row in rows] == [repr(floats[n % 8]) for n in range(len(texts))]
    assert [row[2] for row in rows] == [integers[n % 8] for n in range(len(texts))]
    assert all(row[3] == bytes(range(256)) for row in rows)


def test_values_of_every_type_arrive_in_new_tables_and_in_existing_ones(
    database_url: str, target: Any, tmp_path: Path
) -> None:
    source = tmp_path / "types.db"
    types: dict[str, tuple[dict[str, str], list[Any]]] = {
        "small": ({"type": "smallint"}, [-(2**15), 2**15 - 1]),
        "whole": ({"type": "integer", "convert": "integer"}, ["-7", 2**31 - 1]),
        "flag": ({"type": "boolean"}, ["true", 0]),
        "price": ({"type": "numeric(6,2)"}, ["-1234.50", 7]),
        "digits": ({"type": "numeric"}, ["1e-16383", "9e131071"]),
        "number": ({"type": "double precision"}, [-0.0, 3]),
        "code": ({"type": "varchar(3)"}, ["東京x", ""]),
        "doc": ({"type": "json"}, ['{"b": 1,  "a": 2}', "null"]),
        "tree": ({"type": "jsonb"}, ['{"b": "ü", "n": 1e300}', "[]"]),
        "any": ({"type": "jsonb", "convert": "scalar"}, ["two", 2.5]),
        "key": ({"type": "uuid"}, [b"0123456789abcdef", "00000000-0000-0000-0000-00000000000a"]),
        "day": ({"type": "date"}, ["0001-01-01", "9999-12-31"]),
        "hour": ({"type": "time"}, ["00:00", "23:59:59.999999"]),
        "at": ({"type": "timestamp", "convert": "epoch_milliseconds"}, [-1, 1_740_824_130_120]),
        "zoned": ({"type": "timestamptz"}, ["2025-03-01T12:15:30.120+02:00", "9999-12-31 23:59:59"]),
        "pic": ({"type": "bytea"}, [b"", bytes(range(256))]),
    }
    with contextlib.closing(sqlite3.connect(source)) as connection, connection:
        connection.execute(f"CREATE TABLE t (id INTEGER PRIMARY KEY, {', '.join(types)})")
        rows = [*zip(*(values for _, values in types.values()), strict=True), (None,) * len(types)]
        connection.executemany(f"INSERT INTO t VALUES (NULL, {', '.join('?' * len(types))})", rows)  # noqa: S608 - names of our own

    def edit(data: Any, policy: str = "fail") -> None:
        data["t"]["on_conflict"] = policy
        for name, (change, _) in types.items():
            data["t"]["columns"][name] |= {"convert": "none", **change}

    done = run(source, database_url, tmp_path, "--mapping", edited(source, tmp_path, edit))
    assert done.code == 0, done.stderr
    query = (
        "SELECT small, whole, flag, price::text, scale(digits), number::text, code, doc::text, tree ->> 'b', \"any\"::text, key::text, "
        "day::text, hour::text, at::text, (zoned AT TIME ZONE 'UTC')::text, octet_length(pic) FROM app.t ORDER BY id"
    )
    expected = [
        (
            -(2**15), -7, True, "-1234.50", 16383, "-0", "東京x", '{"b": 1,  "a": 2}', "ü", '"two"',
            "30313233-3435-3637-3839-616263646566", "0001-01-01", "00:00:00", "1969-12-31 23:59:59.999",
            "2025-03-01 10:15:30.12", 0,
        ),
        (
            2**15 - 1, 2**31 - 1, False, "7.00", 0, "3", "", "null", None, "2.5",
            "00000000-0000-0000-0000-00000000000a", "9999-12-31", "23:59:59.999999", "2025-03-01 10:15:30.12",
            "9999-12-31 23:59:59", 256,
        ),
        (None,) * len(types),
    ]  # fmt: skip
    assert target.execute(query).fetchall() == expected
    target.execute("UPDATE app.t SET (small, price, code, at) = (1, 1, 'x', now()) WHERE id < 3")
    target.execute("DELETE FROM app.t WHERE id = 3")
    update = edited(source, tmp_path, lambda data: edit(data, "update"), "update.yml")
    done = run(source, database_url, tmp_path, "--mapping", update)
    assert done.code == 0, done.stderr
    assert target.execute(query).fetchall() == expected
    # PostgreSQL itself refuses what a narrower column of a table that was there before cannot hold.
    target.execute("TRUNCATE app.t")
    target.execute("ALTER TABLE app.t ALTER code TYPE varchar(2)")
    again = edited(source, tmp_path, edit, "again.yml")
    assert run(source, database_url, tmp_path, "--mapping", again).code != 0
    assert scalar(target, "SELECT count(*) FROM app.t") == 0


# -- interruptions ------------------------------------------------------------------------------------------------------------

_SMALL = "import pgchroma.migrate.tables.load as load\nload.BATCH_ROWS = 100\nload._FETCH_ROWS = 50\n"
_KILL = (
    _SMALL
    + """
import os, signal
from pgchroma.migrate.tables import status
count, advance = 0, status.advance

def reached():
    global count
    count += 1
    if count == {batch}:
        os.kill(os.getpid(), signal.SIGKILL)

def instrumented(*arguments, **kwargs):
    if {before}:
        reached()
    advance(*arguments, **kwargs)
    if not {before}:
        reached()

{target} = instrumented
"""
)


@pytest.mark.parametrize(
    ("batch", "before"), [(1, True), (1, False), (5, True), (9, False), (17, True), (23, False)]
)
def test_a_killed_run_is_resumed_without_losing_or_doubling_a_row(
    batch: int, before: bool, source: Path, database_url: str, target: Any, tmp_path: Path
) -> None:
    prelude = _KILL.format(batch=batch, before=before, target="status.advance")
    killed = run(source, database_url, tmp_path, prelude=prelude)
    assert killed.code == -9
    begun = tables("status", "--database-url", database_url, "--format", "json").json[0]
    assert begun["result"] == "interrupted"
    done = tables(
        "resume", "--database-url", database_url, "--receipt", tmp_path / "r.json", "--format", "json"
    )
    assert done.code == 0, done.stderr
    assert done.json["result"] == "equal"
    assert (
        scalar(target, "SELECT count(*) FROM app.messages")
        == scalar(target, "SELECT count(DISTINCT id) FROM app.messages")
        == 2_000
    )


@pytest.mark.parametrize("declared", ["BLOB", "TEXT", "REAL", ""])
def test_a_run_is_resumed_behind_a_key_of_any_storage_class(
    declared: str, database_url: str, target: Any, tmp_path: Path
) -> None:
    source = tmp_path / "keys.db"
    by_class: dict[str, list[Any]] = {
        "BLOB": [b"\xff%03d" % n for n in range(200)] + [b"%03d" % n for n in range(200)],
        "TEXT": [f"ü{n:03d}" for n in range(400)],
        "REAL": [n / 7 for n in range(399)] + [float("inf")],
        "": [*range(100)] + [f"{n}" for n in range(200)] + [b"%d" % n for n in range(100)],
    }
    keys = by_class[declared]
    with contextlib.closing(sqlite3.connect(source)) as connection, connection:
        connection.execute(f"CREATE TABLE t (key {declared} PRIMARY KEY, n INTEGER) WITHOUT ROWID")
        connection.executemany("INSERT INTO t VALUES (?,?)", [(key, n) for n, key in enumerate(keys)])

    def edit(data: Any) -> None:
        if not declared:
            data["t"]["columns"]["key"] |= {"on_misfit": "quarantine"}

    mapping = edited(source, tmp_path, edit)
    prelude = _KILL.format(batch=2, before=False, target="status.advance")
    assert run(source, database_url, tmp_path, "--mapping", mapping, prelude=prelude).code == -9
    done = tables(
        "resume", "--database-url", database_url, "--receipt", tmp_path / "r.json", "--format", "json"
    )
    assert done.code == 0, done.stderr
    (proof,) = done.json["tables"]
    assert proof["quarantined"] == (0 if declared else 100)
    kept = scalar(target, "SELECT count(*) FROM pgchroma_migration.quarantine")
    assert scalar(target, "SELECT count(*) FROM app.t") + kept == 400


def test_without_a_checkpoint_in_the_transaction_rows_double(
    source: Path, database_url: str, target: Any, tmp_path: Path
) -> None:
    """The control: the same kill, with the checkpoint written after the batch's commit instead of with it."""
    control = """
from contextlib import contextmanager, nullcontext
import psycopg
load.Loader._connection = None
real = load.Loader.write
def write(self, run_id, batch):
    self._copy(self._target, batch)
    load.status.advance(self._connection, run_id, self._plan.source, batch.position, read=batch.rows, written=batch.rows)
    return batch.rows
load.Loader.write = write
"""
    prelude = _KILL.format(batch=14, before=True, target="status.advance") + control
    assert run(source, database_url, tmp_path, prelude=prelude).code == -9
    done = tables("resume", "--database-url", database_url, "--receipt", tmp_path / "r.json")
    assert done.code == ExitCode.VERIFICATION_FAILED
    counts = target.execute(
        "SELECT n, d FROM (SELECT count(*) n, count(DISTINCT id) d FROM app.messages) x"
    ).fetchone()
    assert counts[0] > counts[1] == 2_000


def test_without_a_place_for_the_receipt_nothing_begins(
    source: Path, database_url: str, target: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "receipts").write_text("in the way of the default folder")
    monkeypatch.chdir(tmp_path)
    refused = tables("run", source, "--database-url", database_url, "--schema", "app")
    assert refused.code == ExitCode.CONFIGURATION
    assert "cannot write a receipt" in refused.stderr
    assert scalar(target, "SELECT to_regnamespace('app') IS NULL")


def test_a_run_that_could_not_write_its_receipt_is_resumed_for_it(
    source: Path, database_url: str, tmp_path: Path
) -> None:
    full = """
from pgchroma.migrate import receipt
def write(path, content):
    raise OSError(28, "No space left on device")
receipt.write = write
"""
    assert run(source, database_url, tmp_path, prelude=full).code == ExitCode.INTERRUPTED
    assert not (tmp_path / "receipt.json").exists()
    assert (
        tables("status", "--database-url", database_url, "--format", "json").json[0]["result"]
        == "interrupted"
    )
    done = tables("resume", "--database-url", database_url, "--receipt", tmp_path / "receipt.json")
    assert done.code == 0, done.stderr
    assert json.loads((tmp_path / "receipt.json").read_text())["result"] == "equal"


def test_a_source_that_changed_is_not_resumed(source: Path, database_url: str, tmp_path: Path) -> None:
    prelude = _KILL.format(batch=5, before=False, target="status.advance")
    assert run(source, database_url, tmp_path, prelude=prelude).code == -9
    with contextlib.closing(sqlite3.connect(source)) as connection, connection:
        connection.execute("UPDATE messages SET content = 'late' WHERE id = 20")
    refused = tables("resume", "--database-url", database_url)
    assert refused.code == ExitCode.SOURCE_CHANGED


def test_an_application_that_writes_meanwhile_is_noticed(
    source: Path, database_url: str, tmp_path: Path
) -> None:
    prelude = (
        f"source = {str(source)!r}\n"  # noqa: S608 - no user's input
        + """
import sqlite3
from pgchroma.migrate.tables import status
complete = status.set_phase
def instrumented(*arguments, **kwargs):
    with sqlite3.connect(source) as connection:
        connection.execute("UPDATE messages SET content = 'late' WHERE id = 20")
    complete(*arguments, **kwargs)
status.set_phase = instrumented
"""
    )
    done = run(source, database_url, tmp_path, prelude=prelude)
    assert done.code == ExitCode.SOURCE_CHANGED, done.stderr
    assert "was written to while it was copied" in done.stderr
    receipt = json.loads((tmp_path / "receipt.json").read_text())
    assert receipt["result"] == "source-changed"
    assert all(item["equal"] for item in receipt["tables"])
    assert tables("resume", "--database-url", database_url).code == ExitCode.SOURCE_CHANGED


@pytest.mark.parametrize("content", [b"", b"not a database at all", None])
def test_a_source_that_is_no_database_is_refused(
    content: bytes | None, database_url: str, tmp_path: Path
) -> None:
    path = tmp_path / "app.db"
    if content is not None:
        path.write_bytes(content)
    done = run(path, database_url, tmp_path)
    assert done.code == ExitCode.SOURCE_UNREADABLE
    assert str(path) in done.stderr


def test_a_damaged_database_is_refused(source: Path, database_url: str, target: Any, tmp_path: Path) -> None:
    data = bytearray(source.read_bytes())
    data[4096 * 20 : 4096 * 24] = b"\xa5" * 4096 * 4
    source.write_bytes(data)
    done = run(source, database_url, tmp_path)
    assert done.code == ExitCode.SOURCE_UNREADABLE
    assert scalar(target, "SELECT to_regnamespace('app') IS NULL")


def test_times_are_read_alike_whichever_way_they_are_checked(
    database_url: str, target: Any, tmp_path: Path
) -> None:
    source = tmp_path / "times.db"
    good = ["2024-02-29 23:59:59", "2025-12-31T00:00:00.5", "0001-01-01 00:00:00.000001", "2025-01-02"]
    bad = ["2025-02-29 10:00:00", "2025-04-31T10:00:00.1", "2025-01-01 24:00:00", "0000-01-01 00:00:00"]
    with contextlib.closing(sqlite3.connect(source)) as connection, connection:
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, at TIMESTAMP)")
        connection.executemany("INSERT INTO t (at) VALUES (?)", [[value] for value in good + bad])

    def edit(data: Any) -> None:
        data["t"]["columns"]["at"] |= {"type": "timestamp", "on_misfit": "quarantine"}

    done = run(source, database_url, tmp_path, "--mapping", edited(source, tmp_path, edit))
    assert done.code == 0, done.stderr
    found = [row[0] for row in target.execute("SELECT at FROM app.t ORDER BY id").fetchall()]
    assert found == [datetime.fromisoformat(value) for value in good]
    assert done.json["tables"][0]["quarantined"] == len(bad)
