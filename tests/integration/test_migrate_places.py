"""The same records in every kind of place and back: folders of old and new Chroma, a server, files, databases."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgchroma.errors import SourceError
from pgchroma.exit_codes import ExitCode
from pgchroma.migrate.exchange.jsonl import open_jsonl
from pgchroma.migrate.exchange.parquet import open_parquet
from pgchroma.migrate.progress import Display
from pgchroma.migrate.remote import versions
from pgchroma.migrate.remote.folder import ChromaProcess
from support import chroma
from support.command import Outcome, pgchroma, within
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
    ):
        (tmp_path / "b.jsonl").write_bytes(content)
        with pytest.raises(SourceError) as caught, open_jsonl(tmp_path / "b.jsonl"):
            pass
        assert caught.value.hint
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
from pgchroma.migrate.remote.client import RemoteClient
from pgchroma.store import snapshot
snapshot.PAGE_RECORDS = 40
write, count = RemoteClient.write, 0

def instrumented(self, *arguments):
    global count
    count += 1
    write(self, *arguments)
    if count == 5:
        os.kill(os.getpid(), signal.SIGKILL)

RemoteClient.write = instrumented
"""


def test_a_migration_to_a_server_is_resumed_after_a_kill(
    moved: dict[str, str], server: str, tmp_path: Path
) -> None:
    receipt = tmp_path / "receipt.json"
    killed = pgchroma("migrate", "run", moved["1.5.9"], "--to", server, "--receipt", receipt, prelude=_KILLED)
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


def test_a_server_that_is_written_to_meanwhile_is_told(
    moved: dict[str, str], server: str, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert move(moved["1.5.9"], server, tmp_path / "to.json").code == ExitCode.OK
    from pgchroma.migrate import runner
    from pgchroma.migrate.remote.source import ServerSource

    prove, written = runner._prove, []

    async def write_first(run: runner.Run, shown: Display) -> None:
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


def test_a_token_is_asked_for_and_never_shown(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret-token\n")
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


class TestCleanup:
    @pytest.fixture
    def receipt(self, folders: dict[str, Path], database_url: str, tmp_path: Path) -> Path:
        """The green receipt of a folder that may be removed."""
        shutil.copytree(folders["1.5.9"], tmp_path / "old")
        path = tmp_path / "receipt.json"
        assert move(tmp_path / "old", database_url, path).code == ExitCode.OK
        return path

    def test_shows_the_plan_first_then_keeps_a_verified_copy(self, receipt: Path, tmp_path: Path) -> None:
        plan = within("migrate", "cleanup", "--receipt", receipt, "--format", "json")
        assert plan.code == ExitCode.REFUSED
        assert "--yes" in plan.stderr
        assert (tmp_path / "old" / "chroma.sqlite3").exists()
        done = within("migrate", "cleanup", "--receipt", receipt, "--yes", "--format", "json")
        assert done.code == ExitCode.OK, done.stderr
        assert not (tmp_path / "old").exists()
        assert Path(done.json["backup"]).stat().st_size > 0
        assert Path(done.json["note"]).exists()

    def test_keeps_no_copy_when_told_so(self, receipt: Path, tmp_path: Path) -> None:
        done = within("migrate", "cleanup", "--receipt", receipt, "--yes", "--no-backup")
        assert done.code == ExitCode.OK, done.stderr
        assert not (tmp_path / "old").exists()
        assert not list(tmp_path.glob("*.tar.zst"))

    def test_refuses_a_folder_in_which_one_byte_differs(self, receipt: Path, tmp_path: Path) -> None:
        file = next((tmp_path / "old").glob("*/link_lists.bin"))
        times = file.stat()
        content = bytearray(file.read_bytes() or b"x")
        content[0] ^= 1
        file.write_bytes(content)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        done = within("migrate", "cleanup", "--receipt", receipt, "--yes")
        assert done.code == ExitCode.SOURCE_CHANGED
        assert "link_lists.bin has other content" in done.stderr
        assert file.exists()

    def test_refuses_a_receipt_that_is_not_green(self, receipt: Path, tmp_path: Path) -> None:
        told = json.loads(receipt.read_text())
        receipt.write_text(json.dumps({**told, "result": "different"}))
        assert within("migrate", "cleanup", "--receipt", receipt, "--yes").code == ExitCode.REFUSED
        assert (tmp_path / "old").exists()
