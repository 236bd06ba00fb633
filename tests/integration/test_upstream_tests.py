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


def test_chromadbs_own_tests_pass(server: ServerProcess) -> None:
    outcome = upstream.run(server.port, QUICK)
    assert outcome.failures == []
    assert outcome.counts["passed"] >= 20
