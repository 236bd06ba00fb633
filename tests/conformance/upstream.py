"""Runs the tests that ship inside the chromadb wheel against a server: `python -m conformance.upstream`, or `make conformance`."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import chromadb
import click

from conformance.upstream_plugin import BEYOND_VARIABLE, REPORT_VARIABLE
from pgchroma.server.embedded import temporary_postgres
from support.postgres import Databases
from support.server import running_server
from support.stock import running_chroma

ROOT = Path(chromadb.__file__).parent / "test"
# All that mean something to one server; the others test chromadb's insides, its Python server or a distributed deployment.
FILES = (
    "test_api.py",
    *(
        f"api/test_{name}.py"
        for name in (
            "collection", "count_api", "delete_database", "fork_count_api", "get_database", "indexing_status", "invalid_update",
            "limit_offset", "list_databases", "numpy_list_inputs", "schema_e2e", "search_api",
        )
    ),
    "client/test_database_tenant.py",
    "client/test_multiple_clients_concurrency.py",
    "configurations/test_collection_configuration.py",
    "data_loader/test_data_loader.py",
    "ef/test_multimodal_ef.py",
    "test_multithreaded.py",
    *(
        f"property/test_{name}.py"
        for name in (
            "base64_conversion", "collections", "collections_with_database_tenant", "add", "filtering", "embeddings", "schema",
        )
    ),
    "stress/test_many_collections.py",
)  # fmt: skip
# Those that hold tests which upstream runs against its distributed server only: search, forks, the state of the index, sparse
# vectors. None of the others does, but for functions, backpressure and several regions.
BEYOND = (
    *(f"api/test_{name}.py" for name in ("count_api", "fork_count_api", "indexing_status", "schema_e2e", "search_api")),
    "property/test_fork.py",
)  # fmt: skip
# Of these, what one node of ours cannot pass, and why.
_SPANN = "it asks for an index of the kind SPANN, chromadb's own, and for its parameters in the schema; vectors here have HNSW or IVFFlat"
CANNOT_PASS = {
    "test_schema_vector_config_persistence_with_ef": _SPANN,
    "test_modify_collection_no_initial_config_creates_default_schema": _SPANN,
    "test_modify_collection_with_initial_spann_schema": _SPANN,
    "test_modify_collection_updates_schema_spann_multiple_fields": _SPANN,
    "test_modify_collection_preserves_other_schema_fields": _SPANN,
    "test_schema_defaults_enable_indexed_operations": (
        "it asks that the keys of new metadata are not in the schema yet, since there they appear when the log is compacted; "
        "here, as on chromadb's single node, they are there at once"
    ),
}
# How many of them pass on `chroma run` 1.5.9.
PASSING_UPSTREAM = 418


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many tests ended how, and which of them failed."""

    counts: dict[str, int]
    failures: list[str]

    def __str__(self) -> str:
        return ", ".join(f"{count} {outcome}" for outcome, count in self.counts.items() if count)


def run(port: int, files: Sequence[str] = FILES, *, beyond: bool = False) -> Outcome:
    """Run files of chromadb's tests against the server on a local port that allows resets; what it holds is deleted.

    With `beyond`, without the marks by which chromadb keeps tests for its distributed server.
    """
    with tempfile.TemporaryDirectory(prefix="pgchroma-conformance-") as folder:
        report = Path(folder) / "report.json"
        variables = {
            name: value for name, value in os.environ.items() if not name.startswith(("PGCHROMA_", "CHROMA_"))
        }
        variables |= {
            "CHROMA_INTEGRATION_TEST_ONLY": "1",
            "CHROMA_SERVER_HOST": "127.0.0.1",
            "CHROMA_SERVER_HTTP_PORT": str(port),
            "ANONYMIZED_TELEMETRY": "false",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": str(Path(__file__).parents[1]),
            REPORT_VARIABLE: str(report),
        } | ({BEYOND_VARIABLE: "1"} if beyond else {})
        command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", str(ROOT)]
        command += ["-p", "no:cacheprovider", "-p", "conformance.upstream_plugin", "-q", "--tb=short"]
        command += ["--disable-warnings", "--durations=10", *(str(ROOT / name) for name in files)]
        # Some tests leave files in the working directory, and chromadb reads a .env there.
        done = subprocess.run(command, env=variables, cwd=folder, check=False)
        if not report.exists():
            raise AssertionError(f"pytest ended with status {done.returncode} before it ran a test")
        return Outcome(**json.loads(report.read_text()))


@contextmanager
def _pgchroma(folder: Path, *, beyond: bool) -> Iterator[int]:
    # One of the tests asks that a single node has no sparse vectors; ours can be told so.
    environment = {"PGCHROMA_AUTH": "off", "PGCHROMA_SPARSE_VECTORS": str(beyond).lower()}
    with (
        temporary_postgres() as postgres,
        Databases(postgres).fresh() as url,
        running_server(url, folder, workers=2, environment=environment) as server,
    ):
        yield server.port


@contextmanager
def _chroma(folder: Path, *, beyond: bool) -> Iterator[int]:
    """Run chromadb's own server, to see what it makes of the same tests; it is the same for both parts."""
    del beyond
    with running_chroma(folder) as server:
        yield server.port


def name_of(test: str) -> str:
    """Return the name of a test's function from its id."""
    return test.partition("::")[2].partition("[")[0]


def _judge(server: str, outcome: Outcome, *, beyond: bool, whole: bool) -> None:
    kind = "tests for a distributed server" if beyond else "tests"
    click.echo(f"chromadb {chromadb.__version__}'s {kind} against {server}: {outcome}")
    cannot = CANNOT_PASS if beyond else {}
    for name, reason in cannot.items():
        if any(name_of(test) == name for test in outcome.failures):
            click.echo(f"  {name} fails, as it must: {reason}")
    surprises = [test for test in outcome.failures if name_of(test) not in cannot]
    if surprises:
        raise click.ClickException("these failed:\n  " + "\n  ".join(surprises))
    if whole and not beyond and outcome.counts["passed"] < PASSING_UPSTREAM:
        raise click.ClickException(f"fewer passed than on `chroma run`, {PASSING_UPSTREAM}")
    passing = sorted(set(cannot) - {name_of(test) for test in outcome.failures})
    if whole and passing:
        raise click.ClickException(f"said to fail, but passed: {', '.join(passing)}")


@click.command()
@click.option(
    "--server", type=click.Choice(["pgchroma", "chroma"]), default="pgchroma", help="Which server to test."
)
@click.option(
    "--part",
    type=click.Choice(["node", "beyond"]),
    help="Only what chromadb runs against a single node, or only what it keeps for its distributed server.",
)
@click.argument("files", nargs=-1)
def main(server: str, part: str | None, files: Sequence[str]) -> None:
    """Run FILES of chromadb's tests (default: all that mean something to one server) against a server of its own."""
    start = _pgchroma if server == "pgchroma" else _chroma
    # Its own server does none of what the second part asks for.
    parts = [part] if part else ["node", "beyond"][: 1 if files or server == "chroma" else 2]
    for name in parts:
        beyond = name == "beyond"
        with (
            tempfile.TemporaryDirectory(prefix="pgchroma-conformance-") as folder,
            start(Path(folder), beyond=beyond) as port,
        ):
            outcome = run(port, files or (BEYOND if beyond else FILES), beyond=beyond)
        _judge(server, outcome, beyond=beyond, whole=not files)


if __name__ == "__main__":
    main()
