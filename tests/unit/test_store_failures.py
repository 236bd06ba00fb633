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
        errors.CannotConnectNow("wait"),
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


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("FATAL:  sorry, too many clients already", "max_connections"),
        (
            "FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute",
            "max_connections",
        ),
        ("FATAL:  the database system is starting up", "wait"),
    ],
)
def test_one_that_takes_no_connection_now_is_told_with_what_helps(said: str, remedy: str) -> None:
    """Of what PostgreSQL answers one who connects libpq gives the text alone."""
    found = failures.unreachable(psycopg.OperationalError(f"connection failed: {said}"))
    assert found.message == f"PostgreSQL does not answer: connection failed: {said}"
    assert remedy in found.hint
    assert "check that PostgreSQL runs" not in found.hint


def test_a_database_that_is_not_there_is_looked_for_in_the_url() -> None:
    said = 'connection failed: FATAL:  database "typo" does not exist'
    found = failures.unreachable(psycopg.OperationalError(said))
    assert "the URL names" in found.hint


def test_what_is_explained_is_what_is_known() -> None:
    assert isinstance(failures.explained(errors.InsufficientPrivilege("no")), DatabaseNotReadyError)
    assert isinstance(failures.explained(errors.DeadlockDetected("no")), DatabaseUnreachableError)
    unforeseen = errors.DivisionByZero("no")
    assert failures.explained(unforeseen) is unforeseen
