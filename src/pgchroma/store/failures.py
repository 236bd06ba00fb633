"""What PostgreSQL's errors are told as: a connection that is not to be had is one thing, a statement that failed is another."""

from typing import Final

import psycopg

from pgchroma.errors import DatabaseNotReadyError, DatabaseUnreachableError

# How PostgreSQL's messages name a table of a collection, see tables.py.
_TABLES: Final = '"pgchroma_data.'
_UNPREPARED: Final = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.InvalidSchemaName,
    psycopg.errors.InsufficientPrivilege,
)
# Connection exceptions, and a server that shuts down, has crashed or does not start yet; libpq's own errors have no code at all.
_NO_ANSWER: Final = ("08", "57P0")
# What PostgreSQL answers one who connects, of which libpq gives only the text, and what to do about it; in other languages than English the
# remedy is the general one.
_BUSY: Final = {
    "too many clients": "end other connections or raise max_connections, then try again",
    "remaining connection slots": "end other connections or raise max_connections, then try again",
    "the database system is": "it starts, stops or recovers: wait, and look at its log if it stays so",
}
_LOGINS: Final = {
    "Peer authentication failed": "run it as the system's user that the role belongs to, e.g. `runuser -u postgres -- ...`; on hosts of the "
    "playbooks `pgchroma-postgres` runs pgchroma as postgres, `pgchroma-admin` as the owner of the database",
    "password authentication failed": "check the user in the database URL and the password, e.g. in the password file",
    "no password supplied": "give the password in a file, by PGCHROMA_DATABASE_PASSWORD_FILE",
    "does not exist": "check the database and the user that the URL names",
}
# By the beginning of SQLSTATE, the longest first.
_REMEDIES: Final = {
    "53100": "make room on the disk of the database, then try again",
    "53300": "end other connections or raise max_connections, then try again",
    "57014": "try again; if it took longer than its limit, look for what keeps it waiting in pg_stat_activity",
    "40": "others work on the same at the same time: try again",
    "53": "PostgreSQL has used up memory or another resource, its log tells more; try again with less at a time",
    "55": "others hold what it needs, see pg_stat_activity: wait until they have ended, then try again",
}


def reason(error: BaseException) -> str:
    """Return what PostgreSQL says, without the further lines, which may quote ids."""
    return str(error).strip().partition("\n")[0]


def unreachable(error: BaseException) -> DatabaseUnreachableError:
    """Return the error that stands for a lost or refused connection, or for a statement that PostgreSQL could not carry out now."""
    code = getattr(error, "sqlstate", None) or ""
    if not code or code.startswith(_NO_ANSWER):
        said = str(error).strip() or type(error).__name__
        login = next((remedy for text, remedy in _LOGINS.items() if text in said), None)
        busy = next((remedy for text, remedy in _BUSY.items() if text in said), None)
        return DatabaseUnreachableError(
            f"PostgreSQL refuses the login: {said}" if login else f"PostgreSQL does not answer: {said}",
            hint=login or busy or "check that PostgreSQL runs and that PGCHROMA_DATABASE_URL names it",
        )
    remedy = next((text for begin, text in _REMEDIES.items() if code.startswith(begin)), None)
    return DatabaseUnreachableError(
        f"PostgreSQL did not carry out a statement: {reason(error)}",
        hint=remedy or "PostgreSQL's log tells more; try again",
    )


def unprepared(error: BaseException) -> DatabaseNotReadyError:
    """Return the error that stands for a missing catalog or missing rights on it, or for a collection without its tables."""
    said = reason(error)
    if _TABLES in said and isinstance(error, psycopg.errors.UndefinedTable):
        return DatabaseNotReadyError(
            f"the tables of a collection are not there: {said}",
            hint="ask again; if it stays so, look at the database with `pgchroma verify`",
        )
    return DatabaseNotReadyError(
        f"the database is not prepared: {said}", hint="run `pgchroma db upgrade` as the owner"
    )


def explained(error: psycopg.Error) -> Exception:
    """Return the error that a person is told for one of PostgreSQL's; what nobody foresaw stays as it is."""
    if isinstance(error, _UNPREPARED):
        return unprepared(error)
    return unreachable(error) if isinstance(error, psycopg.OperationalError) else error
