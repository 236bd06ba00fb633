"""What an error of PostgreSQL's is told as: the remedy fits what happened."""

import psycopg
import pytest
from psycopg import errors
from psycopg_pool import PoolTimeout

from pgchroma.errors import DatabaseNotReadyError, DatabaseUnreachableError
from pgchroma.store import failures


@pytest.mark.parametrize(
    "error",
    [
        psycopg.OperationalError("connection refused"),
        PoolTimeout("couldn't get a connection after 5 s"),
        TimeoutError(),
        errors.ConnectionFailure("gone"),
        errors.AdminShutdown("terminating connection due to administrator command"),
        errors.CannotConnectNow("the database system is starting up"),
    ],
)
def test_a_connection_that_is_not_to_be_had_is_no_answer(error: Exception) -> None:
    found = failures.unreachable(error)
    assert found.message.startswith("PostgreSQL does not answer: ")
    assert "check that PostgreSQL runs" in found.hint


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (errors.DeadlockDetected("it\nDETAIL: an id"), "try again"),
        (errors.LockNotAvailable("it"), "wait until they have ended"),
        (errors.QueryCanceled("it"), "pg_stat_activity"),
        (errors.DiskFull("it"), "make room"),
        (errors.OutOfMemory("it"), "less at a time"),
        (errors.TooManyConnections("it"), "max_connections"),
        (errors.IoError("it"), "log"),
    ],
)
def test_a_statement_that_failed_is_told_in_postgresqls_words(
    error: psycopg.OperationalError, remedy: str
) -> None:
    found = failures.unreachable(error)
    assert found.message == "PostgreSQL did not carry out a statement: it"
    assert remedy in found.hint
    assert "check that PostgreSQL runs" not in found.hint


def test_a_refused_login_names_the_user_to_run_as() -> None:
    said = 'connection failed: FATAL:  Peer authentication failed for user "postgres"'
    found = failures.unreachable(psycopg.OperationalError(said))
    assert found.message == f"PostgreSQL refuses the login: {said}"
    assert "runuser -u postgres" in found.hint
    assert "pgchroma-postgres" in found.hint


def test_what_is_explained_is_what_is_known() -> None:
    assert isinstance(failures.explained(errors.InsufficientPrivilege("no")), DatabaseNotReadyError)
    assert isinstance(failures.explained(errors.DeadlockDetected("no")), DatabaseUnreachableError)
    unforeseen = errors.DivisionByZero("no")
    assert failures.explained(unforeseen) is unforeseen
