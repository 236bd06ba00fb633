"""Replicas that stream from the cluster: a restore takes it to a timeline they cannot follow, so they must be known before it."""

from __future__ import annotations

from . import engine
from .errors import RefusedError
from .settings import Settings

# A base backup that is being taken streams too, but follows nothing afterwards. A slot without a connection is a replica that is away.
ATTACHED = """
SELECT format('%s at %s, %s', application_name, coalesce(host(client_addr), 'the socket'), state)
FROM pg_stat_replication WHERE state <> 'backup'
UNION ALL
SELECT format('slot %s, whose replica is not connected', slot_name)
FROM pg_replication_slots WHERE NOT active AND NOT temporary
"""


def attached(settings: Settings) -> list[str]:
    """Return what follows the running cluster, one line each."""
    return engine.query(settings, " ".join(ATTACHED.split()))


def refuse(settings: Settings, *, left: bool) -> list[str]:
    """Return the replicas of the running cluster, which may be there only when the operator has said that they are left behind.

    Raises:
        RefusedError: there are replicas, and ``left`` is false.
    """
    found = attached(settings)
    if found and not left:
        raise RefusedError(
            f"replicas follow {settings.data_dir}: {'; '.join(found)}. After a restore they would hold what is no longer true, and could "
            "not follow",
            'stop them (and drop their slots), or leave them behind with "replicas_left": true; make them anew from the restored cluster',
        )
    return found
