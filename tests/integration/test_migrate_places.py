"""The same records in every kind of place and back: folders of old and new Chroma, a server, files, databases."""

import asyncio
import hashlib
import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from pgchroma.errors import SourceError
from pgchroma.exit_codes import ExitCode
from pgchroma.migrate.exchange.jsonl import open_jsonl
from pgchroma.migrate.exchange.parquet import open_parquet
from pgchroma.migrate.model import Source
from pgchroma.migrate.progress import Display
from pgchroma.migrate.remote import lock, versions
from pgchroma.migrate.remote.folder import ChromaProcess
from pgchroma.migrate.run import Run
from pgchroma.store import Store
from pgchroma.types import Collection, Filter, RecordBatch
from support import chroma
from support.command import Outcome, here, pgchroma, within
from support.postgres import Databases

RECORDS = {"1.5.9": 465, "0.5.23": 464}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of two versions; not to be changed."""
    return {version: chroma.extract(version, tmp_path_factory.mktemp("folder")) for version in RECORDS}


@pytest.fixture(scope="module")
def moved(
    folders: dict[str, Path], databases: Databases, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """Databases that they were moved into; not to be changed."""
    receipts = tmp_path_factory.mktemp("receipts")
    with databases.fresh() as one, databases.fresh() as other:
        urls = dict(zip(folders, (one, other), strict=True))
        for version, url in urls.items():
            done = within(
                "migrate", "run", folders[version], "--to", url, "--receipt", receipts / f"{version}.json"
            )
            assert done.code == ExitCode.OK, done.stderr
        yield urls


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A running `chroma run` of the newest version; its URL."""
    process = ChromaProcess(versions.program("1.5.9"), tmp_path / "served", tmp_path / "served.log")
    yield process.url
    process.stop()


def move(source: object, target: object, receipt: Path, *more: object) -> Outcome:
    return within("migrate", "run", source, "--to", target, "--receipt", receipt, "--format", "json", *more)


def require_equal(one: object, other: object) -> None:
    done = within("migrate", "verify", one, "--to", other, "--format", "json")
    assert done.code == ExitCode.OK, done.stderr
    assert done.json["result"] == "equal"


def test_an_export_names_both_places_in_the_usual_ways(folders: dict[str, Path], tmp_path: Path) -> None:
    source = folders["1.5.9"]
    ways = ((source, "1.jsonl"), (source, "--to", "2.jsonl"), ("3.jsonl", "--from", source))
    for way in ways:
        given = [tmp_path / item if str(item).endswith("jsonl") else item for item in way]
        done = within("migrate", "export", *given, "--receipt", tmp_path / "receipt.json", "--format", "json")
        assert done.code == 0, done.stderr
        assert done.json["records"] == RECORDS["1.5.9"]
    assert {path.name for path in tmp_path.glob("*.jsonl")} == {"1.jsonl", "2.jsonl", "3.jsonl"}
    for wrong in ((), (source, "a.jsonl", "b.jsonl"), (source, "a.jsonl", "--from", source)):
        assert within("migrate", "export", *wrong).code == ExitCode.USAGE


@pytest.mark.parametrize("version", RECORDS)
def test_a_folder_goes_there_and_back(
    version: str, folders: dict[str, Path], moved: dict[str, str], tmp_path: Path
) -> None:
    back = tmp_path / "back"
    done = move(moved[version], back, tmp_path / "receipt.json", "--chromadb-version", version)
    assert done.code == ExitCode.OK, done.stderr
    assert done.json["records"] == RECORDS[version]
    assert {item["different"] for item in done.json["collections"]} == {0}
    asked = [item["answers"]["recall"] for item in done.json["collections"] if item["answers"]]
    assert asked
    assert min(asked) >= 0.8
    require_equal(folders[version], back)
    assert not (tmp_path / "back.partial").exists()
    assert not list(tmp_path.glob("*.journal.json"))
    again = move(moved[version], back, tmp_path / "again.json")
    assert again.code == ExitCode.REFUSED


_TELL_WHAT_IS_LOADED = """
import atexit, sys
atexit.register(lambda: sys.stderr.write("chromadb was loaded" if any(name.startswith("chromadb") for name in sys.modules) else "clean"))
"""


def test_no_chromadb_is_in_the_migrators_process(folders: dict[str, Path], tmp_path: Path) -> None:
    target = (
        "--to",
        tmp_path / "back",
        "--chromadb-python",
        sys.executable,
        "--receipt",
        tmp_path / "r.json",
    )
    done = pgchroma("migrate", "run", folders["1.5.9"], *target, prelude=_TELL_WHAT_IS_LOADED)
    assert done.code == ExitCode.OK, done.stderr
    assert done.stderr.endswith("clean")
    control = pgchroma("migrate", "--help", prelude=_TELL_WHAT_IS_LOADED + "import chromadb\n")
    assert control.stderr.endswith("chromadb was loaded")


def test_a_clock_that_is_set_back_changes_no_duration(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = itertools.count(2_000_000_000.0, -3600.0)
    monkeypatch.setattr(time, "time", lambda: next(seconds))
    done = move(folders["1.5.9"], tmp_path / "x.jsonl", tmp_path / "r.json")
    assert done.code == ExitCode.OK, done.stderr
    told = [*done.json["seconds"].values(), *(item["copy_seconds"] for item in done.json["collections"])]
    assert all(0 <= value < 600 for value in told), told


@pytest.mark.parametrize("name", ["all.jsonl", "all.jsonl.zst", "all.parquet"])
def test_exchange_files_hold_everything(
    name: str, folders: dict[str, Path], moved: dict[str, str], database_url: str, tmp_path: Path
) -> None:
    target = tmp_path / name
    done = within(
        "migrate", "export", target, "--from", moved["1.5.9"], "--receipt", tmp_path / "receipt.json"
    )
    assert done.code == ExitCode.OK, done.stderr
    done = move(target, database_url, tmp_path / "import.json")
    assert done.code == ExitCode.OK, done.stderr
    for item in done.json["collections"]:
        assert item["digest_source"] == item["digest_target"]
    require_equal(folders["1.5.9"], database_url)
    require_equal(folders["1.5.9"], target)


def test_a_damaged_exchange_file_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.jsonl.zst", "a.parquet"):
        done = move(folders["1.5.9"], tmp_path / name, tmp_path / "receipt.json")
        assert done.code == ExitCode.OK, done.stderr
    plain = (tmp_path / "a.jsonl").read_bytes()
    line = plain.index(b'{"id":')
    for content in (
        plain[:-10],
        plain[: plain.rindex(b'{"sha256"')],
        plain[:line] + plain[line:].replace(b'"document":"', b'"document":"x', 1),
        plain[:line] + plain[plain.index(b"\n", line) + 1 :],
        plain + b"{}\n",
        b"[]\n",
        b'{"format": "other"}\n',
        plain.replace(b'{"end":{"records":', b'{"end":{},"was":{"records":', 1),
    ):
        (tmp_path / "b.jsonl").write_bytes(content)
        with pytest.raises(SourceError) as caught, open_jsonl(tmp_path / "b.jsonl"):
            pass
        assert caught.value.hint
    # The checksum of the whole is right, that of a collection's records is not.
    body = plain[: plain.rindex(b'{"sha256"')]
    start = body.index(b'"sha256":"') + 10
    body = body[:start] + b"0" * 64 + body[start + 64 :]
    trailer = json.loads(plain[len(body) :]) | {"sha256": hashlib.sha256(body).hexdigest()}
    (tmp_path / "b.jsonl").write_bytes(body + json.dumps(trailer).encode() + b"\n")

    def read_all(source: Source) -> None:
        for item in source.collections():
            assert list(source.records(item))

    with open_jsonl(tmp_path / "b.jsonl") as source, pytest.raises(SourceError, match="have the digest"):
        read_all(source)
    manifest = tmp_path / "a.parquet" / "manifest.json"
    whole = manifest.read_text()
    told = json.loads(whole)
    told["files"][0]["sha256_records"] = "0" * 64
    manifest.write_text(json.dumps(told))
    with open_parquet(tmp_path / "a.parquet") as folder, pytest.raises(SourceError, match="have the digest"):
        read_all(folder)
    manifest.write_text(whole)
    packed = (tmp_path / "a.jsonl.zst").read_bytes()
    (tmp_path / "b.jsonl.zst").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(SourceError, match="is damaged"), open_jsonl(tmp_path / "b.jsonl.zst"):
        pass
    file = max((tmp_path / "a.parquet").glob("*.parquet"), key=lambda path: path.stat().st_size)
    changed = bytearray(file.read_bytes())
    changed[len(changed) // 2] ^= 1
    file.write_bytes(changed)
    with pytest.raises(SourceError, match="SHA-256"), open_parquet(tmp_path / "a.parquet"):
        pass


def test_a_server_takes_and_gives_everything(
    folders: dict[str, Path], moved: dict[str, str], server: str, database_url: str, tmp_path: Path
) -> None:
    done = move(moved["0.5.23"], server, tmp_path / "to.json")
    assert done.code == ExitCode.OK, done.stderr
    scopes = ("--scope", "default_tenant", "--scope", "north", "--scope", "south/live")
    done = move(server, database_url, tmp_path / "from.json", *scopes)
    assert done.code == ExitCode.OK, done.stderr
    assert done.json["records"] == RECORDS["0.5.23"]
    for receipt, target in (("to", server), ("from", database_url)):
        origin = ("--source", moved["0.5.23"]) if receipt == "to" else ()
        verified = within(
            "migrate", "verify", "--receipt", tmp_path / f"{receipt}.json", "--to", target, *origin
        )
        assert verified.code == ExitCode.OK, verified.stderr
    again = move(moved["0.5.23"], server, tmp_path / "again.json")
    assert again.code == ExitCode.REFUSED
    assert "exists in the target already" in again.stderr


_KILLED = """
import os, signal
from pgchroma.migrate import pages
from pgchroma.migrate.remote.client import RemoteClient
from pgchroma.store import snapshot
snapshot.PAGE_RECORDS = 40
# Each page a batch of its own.
pages.LARGEST_BODY_BYTES = 1
write, count = RemoteClient.write, 0

def instrumented(self, *arguments):
    global count
    count += 1
    write(self, *arguments)
    if count == 5:
        os.kill(os.getpid(), signal.SIGKILL)

RemoteClient.write = instrumented
"""


# In the second case some collections are copied as a whole, and only to be proven.
@pytest.mark.parametrize("prelude", [_KILLED, _KILLED.replace("pages.LARGEST_BODY_BYTES = 1", "")])
def test_a_migration_to_a_server_is_resumed_after_a_kill(
    prelude: str, moved: dict[str, str], server: str, tmp_path: Path
) -> None:
    receipt = tmp_path / "receipt.json"
    killed = pgchroma("migrate", "run", moved["1.5.9"], "--to", server, "--receipt", receipt, prelude=prelude)
    assert killed.code == -9, killed.stderr
    # The batch before the kill is in the server; the journal does not know it.
    noted = json.loads((tmp_path / "receipt.journal.json").read_text())
    done = within(
        "migrate",
        "resume",
        "--source",
        moved["1.5.9"],
        "--to",
        server,
        "--receipt",
        receipt,
        "--format",
        "json",
    )
    assert done.code == ExitCode.OK, done.stderr
    assert sum(row["records"] for row in noted["collections"].values()) < done.json["records"] == 465
    assert done.json["resumed"] is True
    assert not (tmp_path / "receipt.journal.json").exists()


def _is_running(process_id: int) -> bool:
    return Path(f"/proc/{process_id}").exists()


@pytest.mark.parametrize("version", RECORDS)
def test_a_folder_whose_migrator_was_killed_is_written_by_one_process_of_its_own_release(
    version: str, moved: dict[str, str], tmp_path: Path
) -> None:
    target, receipt = tmp_path / "back", tmp_path / "receipt.json"
    started = ("--to", target, "--receipt", receipt)
    killed = pgchroma(
        "migrate", "run", moved[version], *started, "--chromadb-version", version, prelude=_KILLED
    )
    assert killed.code == -9, killed.stderr
    writer = json.loads((tmp_path / "receipt.journal.json").read_text())["writer"]

    shown = within("migrate", "status", "--receipts", tmp_path)
    assert f"to {target}" in shown.stdout
    rows = within("migrate", "status", "--receipts", tmp_path, "--format", "json").json
    assert {row["phase"] for row in rows} >= {"planned", "copying"}
    assert 0 < sum(row["records"] for row in rows) < RECORDS[version]
    both = within(
        "migrate", "status", "--receipts", tmp_path, "--database-url", moved[version], "--format", "json"
    ).json
    assert len(both) == 2 * len(rows)

    other = next(item for item in RECORDS if item != version)
    resume = ("migrate", "resume", "--source", moved[version], *started, "--format", "json")
    refused = within(*resume, "--chromadb-version", other)
    assert refused.code == ExitCode.REFUSED
    assert f"chromadb {version} began" in refused.stderr
    # Without a release named it is that of the beginning, and the writer that was left alone is gone before the new one starts.
    done = within(*resume)
    assert done.code == ExitCode.OK, done.stderr
    assert not _is_running(writer)
    assert done.json["records"] == RECORDS[version]
    assert done.json["target"]["layout"] == f"chromadb {version}"


def test_a_folder_that_another_process_writes_is_left_alone(
    moved: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_WAIT_SECONDS", 0.1)
    partial = tmp_path / "back.partial"
    partial.mkdir()
    (partial / "chroma.sqlite3").touch()
    held = lock.FolderLock(partial)
    arguments = (moved["1.5.9"], tmp_path / "back", tmp_path / "receipt.json")
    refused = move(*arguments)
    assert refused.code == ExitCode.REFUSED
    assert "another process is writing" in refused.stderr
    assert (partial / "chroma.sqlite3").exists()
    held.close()
    assert move(*arguments).code == ExitCode.OK


def test_a_dry_run_into_a_folder_builds_nothing(
    moved: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCHROMA_CACHE", str(tmp_path / "cache"))
    done = move(moved["1.5.9"], tmp_path / "back", tmp_path / "receipt.json", "--dry-run")
    assert done.code == ExitCode.OK, done.stderr
    assert not list(tmp_path.iterdir())


def test_a_server_that_is_written_to_meanwhile_is_told(
    moved: dict[str, str], server: str, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert move(moved["1.5.9"], server, tmp_path / "to.json").code == ExitCode.OK
    from pgchroma.migrate import runner
    from pgchroma.migrate.remote.source import ServerSource

    prove, written = runner._prove, []

    async def write_first(run: Run, shown: Display) -> None:
        source = run.source
        assert isinstance(source, ServerSource)
        odd = next(item for item in source.collections() if item.name == "odd")
        where = (odd.tenant, odd.database, str(odd.id))
        record = source.client.records(*where, ids=["plain-1"])[0]
        record.document = "changed in the middle"
        source.client.write(*where, "upsert", [record])
        written.append(record.id)
        await prove(run, shown)

    monkeypatch.setattr(runner, "_prove", write_first)
    done = move(server, database_url, tmp_path / "from.json")
    assert written
    assert done.code == ExitCode.SOURCE_CHANGED
    assert "default_tenant/default_database/odd: records were changed between copy and proof" in done.stderr


def test_credentials_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    done = within("migrate", "plan", "http://127.0.0.1:9", "--source-token-file", tmp_path / "none")
    assert done.code == ExitCode.CONFIGURATION
    assert "cannot read" in done.stderr
    headers = tmp_path / "headers"
    headers.write_text("X-Chroma-Token: abc\nnonsense\n")
    done = within("migrate", "plan", "http://127.0.0.1:9", "--source-headers-file", headers)
    assert done.code == ExitCode.CONFIGURATION


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["ftp://x"], ExitCode.CONFIGURATION, "no place is called ftp://"),
        (["nowhere"], ExitCode.SOURCE_UNREADABLE, "nowhere does not exist"),
        (["nowhere.jsonl"], ExitCode.SOURCE_UNREADABLE, "cannot read nowhere.jsonl"),
        (["nowhere.parquet"], ExitCode.SOURCE_UNREADABLE, "holds no readable manifest.json"),
        (["x", "--policy", "typo=fail"], ExitCode.CONFIGURATION, "there is no danger 'typo'"),
        (["x", "--policy", "vector-missing=convert"], ExitCode.CONFIGURATION, "has no action 'convert'"),
        (["x", "--rename", "a=b"], ExitCode.CONFIGURATION, "not of the form"),
        (["x", "--scope", "a//b"], ExitCode.CONFIGURATION, "not of the form"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(arguments: list[str], code: ExitCode, message: str) -> None:
    done = within("migrate", "plan", *arguments)
    assert done.code == code
    assert message in done.stderr


def test_errors_are_json_where_json_is_asked_for() -> None:
    failed = here("migrate", "plan", "/nowhere", "--format", "json")
    assert failed.code == ExitCode.SOURCE_UNREADABLE
    error = failed.json["error"]
    assert (error["code"], error["kind"]) == (ExitCode.SOURCE_UNREADABLE, "SourceError")
    assert error["message"] in failed.stderr
    assert error["hint"]
    wrong = here("migrate", "plan", "--format=json")
    assert (wrong.code, wrong.json["error"]["code"]) == (ExitCode.USAGE, ExitCode.USAGE)
    assert here("migrate", "plan", "/nowhere").stdout == ""


def test_a_result_is_all_that_standard_output_holds(folders: dict[str, Path], tmp_path: Path) -> None:
    # It ends with an error, but what was found is its result.
    assert (
        here(
            "migrate", "run", folders["1.5.9"], "--to", tmp_path / "x.jsonl", "--receipt", tmp_path / "r.json"
        ).code
        == 0
    )
    different = here("migrate", "verify", folders["0.5.23"], "--to", tmp_path / "x.jsonl", "--format", "json")
    assert different.code == ExitCode.VERIFICATION_FAILED
    assert different.json["result"] == "different"


def test_only_a_part_is_moved_under_another_name(
    folders: dict[str, Path], database_url: str, tmp_path: Path
) -> None:
    path = "default_tenant/default_database/odd"
    done = move(
        folders["1.5.9"], database_url, tmp_path / "r.json", "--scope", path, "--rename", f"{path}=even"
    )
    assert done.code == ExitCode.OK, done.stderr
    assert [item["collection"] for item in done.json["collections"]] == [path.replace("odd", "even")]
    done = within(
        "migrate", "verify", "--receipt", tmp_path / "r.json", "--to", database_url, "--format", "json"
    )
    assert done.code == ExitCode.OK, done.stderr
    refused = within("migrate", "cleanup", "--receipt", tmp_path / "r.json", "--yes")
    assert refused.code == ExitCode.REFUSED
    assert f"only a part of the folder was moved: {path}" in refused.stderr


def change_odd(url: str, change: Callable[[Store, Collection], Awaitable[object]]) -> None:
    """Do something to the collection `odd` of a database."""

    async def work() -> None:
        async with await Store.open(url) as store:
            await change(store, await store.get_collection("default_tenant", "default_database", "odd"))

    asyncio.run(work())


async def _delete_all(store: Store, odd: Collection) -> None:
    ids = [record.id async for page in store.iter_records(odd) for record in page]
    await store.delete(odd.id, Filter(ids=ids))


class TestCleanup:
    @pytest.fixture
    def receipt(self, folders: dict[str, Path], database_url: str, tmp_path: Path) -> Path:
        """The green receipt of a folder that may be removed."""
        shutil.copytree(folders["1.5.9"], tmp_path / "old")
        path = tmp_path / "receipt.json"
        assert move(tmp_path / "old", database_url, path).code == ExitCode.OK
        return path

    @pytest.fixture
    def url(self, database_url: str) -> str:
        """Where the folder was moved to."""
        return database_url

    def test_shows_the_plan_first_then_keeps_a_verified_copy(
        self, receipt: Path, url: str, tmp_path: Path
    ) -> None:
        plan = within("migrate", "cleanup", "--receipt", receipt, "--to", url, "--format", "json")
        assert plan.code == ExitCode.REFUSED
        assert "--yes" in plan.stderr
        assert (tmp_path / "old" / "chroma.sqlite3").exists()
        done = within("migrate", "cleanup", "--receipt", receipt, "--to", url, "--yes", "--format", "json")
        assert done.code == ExitCode.OK, done.stderr
        assert not (tmp_path / "old").exists()
        assert Path(done.json["backup"]).stat().st_size > 0
        assert Path(done.json["note"]).exists()

    def test_keeps_no_copy_when_told_so(self, receipt: Path, url: str, tmp_path: Path) -> None:
        done = within("migrate", "cleanup", "--receipt", receipt, "--to", url, "--yes", "--no-backup")
        assert done.code == ExitCode.OK, done.stderr
        assert not (tmp_path / "old").exists()
        assert not list(tmp_path.glob("*.tar.zst"))

    def test_refuses_a_folder_in_which_one_byte_differs(
        self, receipt: Path, url: str, tmp_path: Path
    ) -> None:
        file = next((tmp_path / "old").glob("*/link_lists.bin"))
        times = file.stat()
        content = bytearray(file.read_bytes() or b"x")
        content[0] ^= 1
        file.write_bytes(content)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        done = within("migrate", "cleanup", "--receipt", receipt, "--to", url, "--yes")
        assert done.code == ExitCode.SOURCE_CHANGED
        assert "link_lists.bin has other content" in done.stderr
        assert file.exists()

    def test_refuses_a_receipt_that_is_not_green(self, receipt: Path, url: str, tmp_path: Path) -> None:
        told = json.loads(receipt.read_text())
        receipt.write_text(json.dumps({**told, "result": "different"}))
        assert (
            within("migrate", "cleanup", "--receipt", receipt, "--to", url, "--yes").code == ExitCode.REFUSED
        )
        assert (tmp_path / "old").exists()

    def test_refuses_when_the_target_is_not_what_was_proven(
        self, receipt: Path, url: str, tmp_path: Path
    ) -> None:
        cleanup = ("migrate", "cleanup", "--receipt", receipt, "--to", url, "--yes")
        change_odd(url, lambda store, odd: store.update(odd.id, RecordBatch(["plain-1"], documents=["new"])))
        refused = within(*cleanup)
        assert refused.code == ExitCode.REFUSED
        assert "--check-target present" in refused.stderr
        change_odd(url, _delete_all)
        refused = within(*cleanup, "--check-target", "present")
        assert refused.code == ExitCode.REFUSED
        assert "an empty collection default_tenant/default_database/odd" in refused.stderr
        change_odd(url, lambda store, odd: store.delete_collection(odd.tenant, odd.database, odd.name))
        refused = within(*cleanup, "--check-target", "present")
        assert "no collection default_tenant/default_database/odd" in refused.stderr
        assert (
            within(*cleanup[:4], "--to", "postgresql:///nowhere?host=/nowhere").code
            == ExitCode.DATABASE_UNREACHABLE
        )
        assert (tmp_path / "old").exists()
        done = within(*cleanup, "--check-target", "no")
        assert done.code == ExitCode.OK, done.stderr

    def test_goes_on_when_applications_have_written_to_the_target(
        self, receipt: Path, url: str, tmp_path: Path
    ) -> None:
        change_odd(url, lambda store, odd: store.delete(odd.id, Filter(ids=["plain-1"])))
        done = within(
            "migrate", "cleanup", "--receipt", receipt, "--to", url, "--yes", "--check-target", "present"
        )
        assert done.code == ExitCode.OK, done.stderr
        assert not (tmp_path / "old").exists()

    def test_removes_what_a_link_stands_for_after_a_whole_move_under_other_names(
        self, folders: dict[str, Path], tmp_path: Path
    ) -> None:
        shutil.copytree(folders["1.5.9"], tmp_path / "real")
        (tmp_path / "link").symlink_to(tmp_path / "real")
        target, receipt = tmp_path / "all.jsonl", tmp_path / "r.json"
        rename = ("--rename", "default_tenant/default_database/odd=even")
        assert move(tmp_path / "link", target, receipt, *rename).code == ExitCode.OK
        cleanup = (
            "migrate",
            "cleanup",
            "--receipt",
            receipt,
            "--source",
            tmp_path / "link",
            "--no-backup",
            "--yes",
        )
        target.rename(tmp_path / "elsewhere.jsonl")
        gone = within(*cleanup)
        assert gone.code == ExitCode.SOURCE_UNREADABLE, gone.stderr
        (tmp_path / "elsewhere.jsonl").rename(target)
        done = within(*cleanup)
        assert done.code == ExitCode.OK, done.stderr
        assert not (tmp_path / "real").exists()
        assert (tmp_path / "link").is_symlink()
