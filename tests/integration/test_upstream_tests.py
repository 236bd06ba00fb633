"""A quick part of what `make conformance` runs: chromadb's own tests against a server with two workers."""

from conformance import upstream
from support.server import ServerProcess

QUICK = (
    "api/test_collection.py",
    "api/test_invalid_update.py",
    "api/test_list_databases.py",
    "client/test_database_tenant.py",
    "property/test_schema.py",
)


# Written for chromadb's distributed server.
BEYOND = ("api/test_count_api.py", "api/test_fork_count_api.py", "api/test_search_api.py")


def test_chromadbs_own_tests_pass(server: ServerProcess) -> None:
    outcome = upstream.run(server.port, QUICK)
    assert outcome.failures == []
    assert outcome.counts["passed"] >= 20


def test_what_chromadb_keeps_for_its_distributed_server_passes_too(server: ServerProcess) -> None:
    outcome = upstream.run(server.port, BEYOND, beyond=True)
    assert outcome.failures == []
    assert outcome.counts["passed"] >= 24
    assert outcome.counts["skipped"] == 0
