"""Checks of a restored cluster: is it whole, is it what was there, does it answer?"""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psycopg

from pgchroma.backup.state import Recorded
from pgchroma.errors import DatabaseNotReadyError, RefusedError
from pgchroma.store import Store, StoreSettings, backups, digests, soundness
from pgchroma.store.failures import unprepared, unreachable
from pgchroma.types import Filter, Include
from pgchroma.verify import checks as outcomes
from pgchroma.verify.checks import Check, check
from pgchroma.verify.database import check_database

# An index of vectors without any structure, such as random ones, finds seven of ten; one that lost a part does not even find
# the vectors that are asked for.
_GOOD_RECALL, _LEAST_RECALL, _LEAST_FOUND = 0.9, 0.5, 0.9
_NEIGHBOURS = 10
_COLLECTIONS = 5
_QUERIES = 5
# How a throw-away copy is run for speed says nothing about the backup.
_ABOUT_THE_SETTINGS = {"crash-safety", "commit-durability"}
_SHOWN_DIFFERENCES = 20


@dataclass(slots=True)
class Report:
    """What was seen of a restored cluster.

    Attributes:
        differences: per collection what is not as recorded.
        seconds: how long the checks took.
    """

    checks: list[Check] = field(default_factory=list)
    differences: list[digests.Difference] = field(default_factory=list)
    collections: int = 0
    records: int = 0
    point: str | None = None
    seconds: float = 0.0

    @property
    def failed(self) -> list[Check]:
        """The critical checks that failed."""
        return [item for item in self.checks if item.is_critical_failure]

    def as_json(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        return {
            **outcomes.as_json(self.checks),
            "point": self.point,
            "collections": self.collections,
            "records": self.records,
            "differences": [{"path": item.path, "detail": item.detail} for item in self.differences],
            "seconds": round(self.seconds, 2),
        }


async def check_restored(database_url: str, recorded: Recorded | None, *, in_place: bool = False) -> Report:
    """Return the outcome of every check of the restored cluster behind the URL.

    Args:
        recorded: what there was at the point it was restored to; None when it was restored to some other time.
        in_place: the cluster stays; nothing is created in it.

    Raises:
        RefusedError: the cluster archives its WAL, so it is not a sealed copy, and `in_place` was not said.
        DatabaseUnreachableError: the connection was lost on the way.
    """
    begun = time.monotonic()
    report = Report(point=recorded.point if recorded else None)
    seen = await check_database(database_url)
    report.checks += [item for item in seen if in_place or item.id not in _ABOUT_THE_SETTINGS]
    if not report.failed:
        try:
            async with await backups.connect(database_url, "pgchroma backup check-restored") as connection:
                await _all(connection, database_url, recorded, report, in_place=in_place)
        except psycopg.errors.InsufficientPrivilege as error:
            raise DatabaseNotReadyError(
                f"the role may not look at everything: {error.diag.message_primary}",
                hint="connect as the superuser, e.g. user=postgres over the socket",
            ) from error
        except psycopg.errors.UndefinedTable as error:
            raise unprepared(error) from error
        except psycopg.OperationalError as error:
            raise unreachable(error) from error
    report.seconds = time.monotonic() - begun
    return report


async def _all(
    connection: psycopg.AsyncConnection[Any],
    database_url: str,
    recorded: Recorded | None,
    report: Report,
    *,
    in_place: bool,
) -> None:
    who = await soundness.identity(connection)
    if who.archives and not in_place:
        raise RefusedError(
            "this cluster archives its WAL, so it is no sealed copy but one in use",
            hint="name the copy's socket and port in --database-url; for a cluster that stays say --in-place",
        )
    if recorded:
        report.checks += _whereabouts(who, recorded)
    report.checks += await _structure(connection, may_create=not in_place and not who.in_recovery)
    await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    try:
        found = await digests.compute(connection)
    except psycopg.OperationalError:
        raise
    except psycopg.Error as error:
        report.checks.append(
            check("digests", "critical", False, f"the records cannot be read: {error}", _REPLACE)
        )
        return
    finally:
        if connection.info.transaction_status != psycopg.pq.TransactionStatus.UNKNOWN:
            await connection.rollback()
    report.collections, report.records = len(found.collections), found.records
    report.checks.append(_compare(found, recorded, report))
    report.checks.append(await _queries(connection, database_url))


_REPLACE = "do not use this backup: restore another set and look at `pgbackrest verify` and the host's disks"


def _whereabouts(who: soundness.Identity, recorded: Recorded) -> list[Check]:
    same = who.system_identifier == recorded.system_identifier
    names = [name for name, _ in who.points]
    if recorded.point not in names:
        detail = f"the point {recorded.point} is not in it: it was restored to an earlier time"
    elif who.points[0] == (recorded.point, False):
        detail = f"restored to {recorded.point}"
    else:
        detail = f"restored beyond {recorded.point}: what was written later counts as a difference"
    return [
        check(
            "same-cluster",
            "critical",
            same,
            f"system identifier {who.system_identifier}"
            + ("" if same else f", but the digests are of {recorded.system_identifier}"),
            "compare with digests of the cluster that was restored",
        ),
        check(
            "restored-to-point",
            "critical" if recorded.point not in names else "warning",
            who.points[:1] == ((recorded.point, False),),
            detail,
            f"restore with --type=name --target={recorded.point}",
        ),
    ]


async def _structure(connection: psycopg.AsyncConnection[Any], *, may_create: bool) -> list[Check]:
    found = []
    schema = await soundness.extension(connection, soundness.PAGES, create=may_create)
    if schema is None:
        found.append(_not_there("pages", soundness.PAGES))
    else:
        swept = await soundness.pages(connection, schema)
        found.append(_swept("pages", "tables and indexes read, every page with its checksum", swept))
    schema = await soundness.extension(connection, soundness.STRUCTURE, create=may_create)
    if schema is None:
        return [*found, _not_there("tables", soundness.STRUCTURE), _not_there("indexes", soundness.STRUCTURE)]
    found.append(_swept("tables", "tables checked", await soundness.heaps(connection, schema)))
    found.append(
        _swept("indexes", "B-trees checked against their tables", await soundness.btrees(connection, schema))
    )
    return found


def _not_there(ident: str, extension: str) -> Check:
    return check(
        ident,
        "warning",
        False,
        f"not checked: the extension {extension} is not there",
        f"Debian's package postgresql-<version> brings it; in a cluster that stays: CREATE EXTENSION {extension}",
    )


def _swept(ident: str, what: str, swept: soundness.Sweep) -> Check:
    detail = "; ".join(swept.findings) or f"{swept.objects:,} {what}"
    return check(ident, "critical", not swept.findings, detail, _REPLACE)


def _compare(found: digests.Digests, recorded: Recorded | None, report: Report) -> Check:
    if recorded is None:
        return check(
            "digests",
            "warning",
            False,
            f"not compared: {found.records:,} records of {len(found.collections):,} collections can be read",
            "restore to a recorded point to prove that they are what was there",
        )
    if found.postgresql != recorded.digests.postgresql:
        return check(
            "digests",
            "critical",
            False,
            f"cannot be compared: recorded under PostgreSQL {recorded.digests.postgresql}, this is {found.postgresql}",
            "restore with the same major version",
        )
    report.differences = digests.differences(recorded.digests, found)
    shown = "; ".join(f"{item.path}: {item.detail}" for item in report.differences[:_SHOWN_DIFFERENCES])
    more = len(report.differences) - _SHOWN_DIFFERENCES
    return check(
        "digests",
        "critical",
        not report.differences,
        (shown + (f"; and {more} more" if more > 0 else ""))
        or f"{found.records:,} records of {len(found.collections):,} collections are as recorded at {recorded.point}",
        "look at restored-to-point first; if that holds, records were lost or changed: " + _REPLACE,
    )


async def _queries(connection: psycopg.AsyncConnection[Any], database_url: str) -> Check:
    """Ask the largest collections for neighbours the way the server does, and compare with every vector."""
    settings = StoreSettings(
        pool_size=1, statement_timeout_seconds=0, application_name="pgchroma backup check-restored"
    )
    asked = wanted = near = itself = 0
    async with await Store.open(database_url, settings) as store:
        sizes = sorted(await store.status(), key=lambda item: item.rows, reverse=True)[:_COLLECTIONS]
        for status in sizes:
            collection = await store.get_collection_by_id(status.id)
            for query in await soundness.sample(connection, collection, _QUERIES):
                (answer,) = await store.query(
                    collection.id,
                    np.array([query], dtype=np.float32),
                    min(_NEIGHBOURS, status.rows),
                    Filter(),
                    Include(),
                )
                asked += 1
                wanted += min(_NEIGHBOURS, status.rows)
                near += await soundness.near_enough(connection, collection, query, answer.ids)
                itself += await soundness.near_enough(connection, collection, query, answer.ids[:1])
                # Let an interrupt through between two queries.
                await asyncio.sleep(0)
    if not asked:
        return check("vector-queries", "critical", True, "no collection holds records")
    recall, found = near / wanted, itself / asked
    broken = recall < _LEAST_RECALL or found < _LEAST_FOUND
    return check(
        "vector-queries",
        "critical" if broken else "warning",
        not broken and recall >= _GOOD_RECALL,
        f"{asked} stored vectors asked for, {itself} found; recall {recall:.3f} of {_NEIGHBOURS} neighbours",
        "the vector indexes are damaged or incomplete: drop them, the indexer builds them anew"
        if broken
        else "raise ef_search of the collections if answers should be more exact",
    )
