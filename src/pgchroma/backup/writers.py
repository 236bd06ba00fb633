"""The same facts and checks as one line for Nagios and as metrics for Prometheus' node_exporter (textfile collector)."""

from collections.abc import Iterator, Sequence
from typing import Final

from prometheus_client.core import CollectorRegistry, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from pgchroma.backup.pgbackrest import TYPES
from pgchroma.backup.status import Facts, Thresholds, drill_started
from pgchroma.exit_codes import NagiosCode
from pgchroma.verify.checks import Check

_WORDS: Final = {
    NagiosCode.OK: "OK",
    NagiosCode.WARNING: "WARNING",
    NagiosCode.CRITICAL: "CRITICAL",
    NagiosCode.UNKNOWN: "UNKNOWN",
}


def nagios_code(checks: Sequence[Check]) -> NagiosCode:
    """Return what Nagios is to think of the checks."""
    if any(item.is_critical_failure for item in checks):
        return NagiosCode.CRITICAL
    return NagiosCode.WARNING if any(item.status == "failed" for item in checks) else NagiosCode.OK


def nagios(facts: Facts, checks: Sequence[Check], thresholds: Thresholds) -> str:
    """Return the line for Nagios: state, what is wrong, and after the bar the values with their thresholds."""
    failed = sorted(
        (item for item in checks if item.status == "failed"), key=lambda item: item.severity != "critical"
    )
    told = "; ".join(f"{item.id}: {item.detail}" for item in failed) or f"{len(checks)} checks hold"
    # A bar would end the text.
    line = f"PGCHROMA BACKUP {_WORDS[nagios_code(checks)]} - {told.replace('|', '/')}"
    values = " ".join(_performance(facts, thresholds))
    return f"{line} | {values}" if values else line


def unknown(message: str) -> str:
    """Return the line for Nagios when nothing could be found out."""
    return f"PGCHROMA BACKUP {_WORDS[NagiosCode.UNKNOWN]} - {message.replace('|', '/')}"


def _performance(facts: Facts, thresholds: Thresholds) -> Iterator[str]:
    for repository in facts.repositories:
        for name, limits, newest in (
            ("full", thresholds.full_age, repository.newest("full")),
            ("newest", thresholds.backup_age, repository.newest()),
        ):
            if newest is not None:
                yield (
                    f"repo{repository.key}_{name}_age={facts.now - newest.stopped:.0f}s;{limits.warning:.0f};{limits.critical:.0f};0"
                )
        yield f"repo{repository.key}_size={sum(item.repository_bytes for item in repository.backups)}B;;;0"
    if facts.archiver is not None and facts.archiver.ready_files is not None:
        limits = thresholds.ready_files
        yield f"wal_files={facts.archiver.ready_files};{limits.warning:.0f};{limits.critical:.0f};0"
        limits = thresholds.wal_age
        yield f"wal_age={facts.archiver.oldest_ready_seconds:.0f}s;{limits.warning:.0f};{limits.critical:.0f};0"
    for key, drill in sorted(facts.drills_by_repository.items()):
        name = f"repo{key}_drill" if key else "drill"
        limits, turns = thresholds.drill_age, max(1, len(facts.repositories)) if key else 1
        old = facts.now - drill_started(drill)
        yield f"{name}_age={old:.0f}s;{limits.warning * turns:.0f};{limits.critical * turns:.0f};0"
        yield f"{name}_duration={drill['duration_seconds']:.1f}s;;;0"


class _Metrics(Collector):
    """Metrics made anew at each look."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """Return the metrics."""
        yield from self._metrics


def prometheus(facts: Facts, checks: Sequence[Check]) -> str:
    """Return the metrics as Prometheus' text; what is not known is left out, so that absent() and age alerts fire."""
    registry = CollectorRegistry()
    registry.register(
        _Metrics([*_backup_metrics(facts), *_drill_metrics(facts), *_other_metrics(facts, checks)])
    )
    return generate_latest(registry).decode()


def _backup_metrics(facts: Facts) -> list[Metric]:
    labels = ["stanza", "repo", "type"]
    stopped = GaugeMetricFamily(
        "pgchroma_backup_last_timestamp_seconds",
        "When the newest backup of a type without damaged pages ended.",
        labels=labels,
    )
    took = GaugeMetricFamily(
        "pgchroma_backup_last_duration_seconds", "How long the newest backup of a type took.", labels=labels
    )
    cluster = GaugeMetricFamily(
        "pgchroma_backup_last_cluster_bytes",
        "Size of the cluster in the newest backup of a type.",
        labels=labels,
    )
    short = ["stanza", "repo"]
    damaged = GaugeMetricFamily(
        "pgchroma_backup_last_damaged",
        "1 if the newest backup met pages with a wrong checksum.",
        labels=short,
    )
    size = GaugeMetricFamily(
        "pgchroma_backup_repository_bytes",
        "What all backups take in the repository, without WAL.",
        labels=short,
    )
    count = GaugeMetricFamily(
        "pgchroma_backup_count", "Backups without damaged pages in the repository.", labels=labels
    )
    code = GaugeMetricFamily(
        "pgchroma_backup_repository_status", "pgBackRest's status of the repository; 0 is good.", labels=short
    )
    for repository in facts.repositories:
        key = str(repository.key)
        code.add_metric([facts.stanza, key], repository.code)
        size.add_metric([facts.stanza, key], sum(item.repository_bytes for item in repository.backups))
        last = repository.last
        if last is not None:
            damaged.add_metric([facts.stanza, key], float(last.damaged))
        for kind in TYPES:
            count.add_metric([facts.stanza, key, kind], sum(item.type == kind for item in repository.sound))
            found = repository.newest(kind)
            if found is not None:
                stopped.add_metric([facts.stanza, key, kind], found.stopped)
                took.add_metric([facts.stanza, key, kind], found.stopped - found.started)
                cluster.add_metric([facts.stanza, key, kind], found.cluster_bytes)
    return [stopped, took, cluster, damaged, size, count, code]


def _drill_metrics(facts: Facts) -> list[Metric]:
    labels = ["stanza", "repo"]
    began = GaugeMetricFamily(
        "pgchroma_restore_drill_timestamp_seconds", "When the last restore drill began.", labels=labels
    )
    took = GaugeMetricFamily(
        "pgchroma_restore_drill_duration_seconds",
        "From its beginning to an answering, checked copy.",
        labels=labels,
    )
    held = GaugeMetricFamily(
        "pgchroma_restore_drill_success", "1 if the last restore drill held.", labels=labels
    )
    owed = GaugeMetricFamily(
        "pgchroma_restore_drill_owed_since_timestamp_seconds",
        "When the first backup was taken into a repository that was never drilled.",
        labels=labels,
    )
    for key, drill in sorted(facts.drills_by_repository.items()):
        of = [facts.stanza, str(key)]
        began.add_metric(of, drill_started(drill))
        took.add_metric(of, drill["duration_seconds"])
        held.add_metric(of, float(drill["result"] == "ok"))
    for key, since in sorted(facts.never_drilled.items()):
        owed.add_metric([facts.stanza, str(key)], since)
    return [began, took, held, owed]


def _other_metrics(facts: Facts, checks: Sequence[Check]) -> Iterator[Metric]:
    def gauge(name: str, text: str, value: float | None) -> Iterator[Metric]:
        if value is not None:
            yield GaugeMetricFamily(f"pgchroma_{name}", text, value=value)

    seen = facts.archiver
    if seen is not None:
        yield from gauge("wal_archiving", "1 if archive_mode is on.", float(seen.archiving))
        yield from gauge("wal_ready_files", "WAL files that wait to be archived.", seen.ready_files)
        yield from gauge(
            "wal_oldest_ready_seconds",
            "How long the oldest of them has been waiting.",
            seen.oldest_ready_seconds,
        )
        yield from gauge(
            "wal_archive_failing", "1 if the last attempt to archive failed.", float(seen.failing)
        )
        yield from gauge(
            "wal_archive_failures", "Failed attempts since the statistics were reset.", seen.failed_count
        )
        yield from gauge(
            "wal_last_archived_timestamp_seconds",
            "When a WAL file was last archived.",
            None if seen.last_archived_seconds is None else facts.now - seen.last_archived_seconds,
        )
        yield from gauge(
            "page_checksum_failures", "Pages with a wrong checksum that were read.", seen.checksum_failures
        )
    if facts.point is not None:
        yield from gauge(
            "backup_digests_timestamp_seconds",
            "When digests were last recorded.",
            facts.point.created_at.timestamp(),
        )
    # Without an answer the series above are not there, and no rule about them can hold: these say so.
    yield from gauge(
        "backup_repositories_answer",
        "1 if pgBackRest told about its repositories.",
        float(not facts.repositories_error),
    )
    yield from gauge(
        "backup_database_answers",
        "1 if PostgreSQL told about its archiving.",
        float(facts.archiver is not None),
    )
    failed = [item.severity for item in checks if item.status == "failed"]
    yield from gauge(
        "backup_critical_checks_failed", "Failed critical checks of backup status.", failed.count("critical")
    )
    yield from gauge(
        "backup_warning_checks_failed", "Failed warning checks of backup status.", failed.count("warning")
    )
    yield from gauge("backup_status_timestamp_seconds", "When this was written.", facts.now)
