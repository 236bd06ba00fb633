"""Measure backups and restores on the machines of molecule/backup_restore; `make bench-backup` makes them and calls this.

Says how fast pgBackRest is beside pg_basebackup and cp, what a backup costs queries, how long the service is away after its data was
destroyed (from the local repository and from S3), whether a deleted collection comes back whole, and what is lost when the host is killed
under load and only S3 is left. In parts: `--only load`, then `--only throughput`, `--only queries`, and so on, on the same machines.
What can be repeated is, and medians are told; `--check` holds them against what is wanted and what is promised.
"""

from __future__ import annotations

import json
import os
import shlex
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
# Names of the machines, and of the host to confirm; others through the environment.
FIRST = os.environ.get("PGCHROMA_BENCH_FIRST", "backup-restore1")
SPARE = os.environ.get("PGCHROMA_BENCH_SPARE", "backup-restore2")
S3 = os.environ.get("PGCHROMA_BENCH_S3", "backup-restore3")
RECOVERY = os.environ.get("PGCHROMA_BENCH_RECOVERY", str(ROOT / "molecule/backup_restore/recovery/hosts.yml"))
DATA = "/var/lib/postgresql/17/main"
SCRATCH = "/srv/bench"
UNIT = "postgresql@17-main"
DROP_IN = "/run/systemd/system/pgchroma-backup@full.service.d"
RULES = "/etc/postgresql/17/main/pg_hba.conf"
API = "http://127.0.0.1:8000/api/v2"
COLLECTIONS = "/tenants/default_tenant/databases/default_database/collections"
DIMENSION, RECORDS = 384, 2000
# Rows of the distinct part; the rest repeats them at a distance that no compressor's window spans.
DISTINCT, ROW_BYTES = 20_000, 1_600
# How many rows load() has put into the bulk table.
BULK = {"rows": 0}
# The repositories of the scenario, by number.
REPOSITORIES = {1: "local", 2: "s3", 3: "repository_host"}
LOCAL, REMOTE = (
    "data directory destroyed, recovered from the local repository",
    "data directory destroyed, recovered from S3",
)
KILLED = "killed under load, recovered from S3 alone"
# (measure, figure, the least or the most it may be, what that is): docs/BACKUPS.md, Measured.
BOUNDS = (
    ("throughput", "local_backup_to_pg_basebackup", ">=", 0.7, "wanted"),
    ("throughput", "local_backup_to_cp", ">=", 0.7, "wanted"),
    ("throughput", "local_restore_to_pg_basebackup", ">=", 0.7, "wanted"),
    ("throughput", "local_restore_to_cp", ">=", 0.7, "wanted"),
    ("queries during a backup", "local_ratio", "<=", 1.5, "wanted"),
    ("queries during a backup", "s3_ratio", "<=", 1.5, "wanted"),
    (LOCAL, "seconds", "<=", 120, "wanted"),
    (LOCAL, "seconds", "<=", 300, "promised"),
    (REMOTE, "seconds", "<=", 120, "wanted"),
    (REMOTE, "seconds", "<=", 300, "promised"),
    (KILLED, "seconds", "<=", 120, "wanted"),
    (KILLED, "seconds", "<=", 300, "promised"),
    # archive_timeout, and the sending of one segment.
    (KILLED, "lost_span_s", "<=", 75, "promised"),
)
console = Console(highlight=False)

# Run on the host: queries for as long as a file exists, or a number of times; prints each latency in seconds.
QUERIES = """
import json, os, random, sys, time, urllib.request
url, number, flag = sys.argv[1], int(sys.argv[2]), sys.argv[3]
random.seed(7)
found = []
while (len(found) < number) if not flag else os.path.exists(flag):
    body = {"query_embeddings": [[random.random() for _ in range(384)]], "n_results": 10, "include": ["distances"]}
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    begun = time.perf_counter()
    urllib.request.urlopen(request, timeout=60).read()
    found.append(time.perf_counter() - begun)
print(json.dumps(found))
"""
# Run on the host: fill a collection with records whose place is known.
FILL = """
import json, random, sys, urllib.request
base, collections, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
def call(path, body):
    request = urllib.request.Request(base + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    return json.loads(urllib.request.urlopen(request, timeout=120).read())
made = call(collections, {"name": "bench", "get_or_create": True})["id"]
random.seed(1)
for start in range(0, number, 500):
    ids = [f"r{i}" for i in range(start, start + 500)]
    embeddings = [[random.random() for _ in range(384)] for _ in ids]
    call(f"{collections}/{made}/upsert", {"ids": ids, "embeddings": embeddings, "documents": ids})
print(made)
"""
# Run on the host: write one record after another and print each that was acknowledged with its time.
WRITE = """
import json, sys, time, urllib.request
base, collections, made = sys.argv[1:4]
number = 0
while True:
    body = {"ids": [f"w{number}"], "embeddings": [[float(number % 97)] * 384], "documents": ["w"]}
    request = urllib.request.Request(f"{base}{collections}/{made}/upsert", json.dumps(body).encode(), {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=60).read()
    print(number, time.time(), flush=True)
    number += 1
"""
# Run on the host: one request each.
COUNT = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1] + '/count', timeout=60).read().decode())"
GET = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=60).read().decode())"
DELETE = "import sys, urllib.request; urllib.request.urlopen(urllib.request.Request(sys.argv[1], method='DELETE'), timeout=60).read()"


def ssh(host: str, command: str, *, text: str = "") -> str:
    """Run a command on a machine and return its output; what it says when it fails goes to stderr."""
    words = [str(ROOT / "scripts/machine"), "ssh", host, command]
    done = subprocess.run(words, input=text, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise click.ClickException(
            f"{command[:120]} on {host} ended with {done.returncode}: {done.stdout[-500:]}"
        )
    return done.stdout.strip()


def python(host: str, program: str, *words: object) -> str:
    """Run a program on a machine's own Python."""
    return ssh(host, f"python3 -c {shlex.quote(program)} {shlex.join(map(str, words))}")


def sql(host: str, statement: str) -> str:
    """Run SQL as the superuser."""
    return ssh(host, f"cd / && runuser -u postgres -- psql -XAtq -d pgchroma -c {shlex.quote(statement)}")


def timed(host: str, command: str) -> float:
    """Run a command and everything it left to be written to disk; return the seconds."""
    ssh(host, "sync")
    begun = time.monotonic()
    ssh(host, f"{command} && sync")
    return time.monotonic() - begun


def p95(latencies: list[float]) -> float:
    """Return the 95th percentile in milliseconds."""
    return statistics.quantiles(latencies, n=20)[-1] * 1000


def medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the median of each figure over several runs, and for ratios the least and the most too."""
    found: dict[str, Any] = {"runs": len(runs)}
    for key in runs[0]:
        values = [run[key] for run in runs]
        found[key] = statistics.median(values)
        if "_to_" in key or key.endswith("_ratio"):
            found[f"{key}_from"], found[f"{key}_up_to"] = min(values), max(values)
    return found


def judged(results: dict[str, Any]) -> list[tuple[bool, str]]:
    """Return for each bound on what was measured whether it holds, and how that reads."""
    found = []
    for measure, figure, relation, bound, what in BOUNDS:
        if measure in results:
            value = results[measure][figure]
            holds = value >= bound if relation == ">=" else value <= bound
            found.append((holds, f"{measure}: {figure} is {value:.2f}, {what} {relation} {bound:g}"))
    return found


def ready(host: str, made: str) -> None:
    """Wait until the server of a host answers a query with the record that lies nearest, and holds every record."""
    program = (
        "import json,random,sys,threading,time,urllib.request\n"
        "random.seed(1); first=[random.random() for _ in range(384)]\n"
        "deadline=time.time()+300\n"
        "while True:\n"
        "  try:\n"
        "    body=json.dumps({'query_embeddings':[first],'n_results':1}).encode()\n"
        "    request=urllib.request.Request(sys.argv[1]+'/query',body,{'Content-Type':'application/json'})\n"
        "    found=json.loads(urllib.request.urlopen(request,timeout=10).read())['ids'][0]\n"
        "    assert found==['r0'], found\n"
        "    print(urllib.request.urlopen(sys.argv[1]+'/count',timeout=10).read().decode()); break\n"
        "  except OSError:\n"
        "    if time.time()>deadline: raise\n"
        "    threading.Event().wait(0.1)\n"
    )
    counted = int(python(host, program, f"{API}{COLLECTIONS}/{made}"))
    if counted < RECORDS:
        raise click.ClickException(f"{counted} of {RECORDS} records came back")


def load(megabytes: int, tables: int) -> str:
    """Fill the database: a collection through the API, and vectors of the size asked for, spread evenly over tables as collections do.

    pgBackRest gives each file to one process. With one table of less than 1 GB nearly everything is one file, and one process does all.
    """
    made = python(FIRST, FILL, API, COLLECTIONS, RECORDS)
    times = max(megabytes * 1_000_000 // (DISTINCT * ROW_BYTES), 1)
    sql(FIRST, "DROP TABLE IF EXISTS bulk")
    sql(
        FIRST,
        f"CREATE TABLE bulk (i bigint, embedding vector({DIMENSION}) STORAGE PLAIN) PARTITION BY HASH (i)",
    )
    for part in range(tables):
        bounds = f"FOR VALUES WITH (MODULUS {tables}, REMAINDER {part})"
        sql(FIRST, f"CREATE TABLE bulk{part} PARTITION OF bulk {bounds}")
    row = f"(SELECT array_agg(random()) FROM generate_series(1, {DIMENSION}) WHERE g = g)::vector"  # noqa: S608
    seed = f"SELECT g AS i, {row} AS embedding FROM generate_series(1, {DISTINCT}) AS g"  # noqa: S608
    copies = f"SELECT t * {DISTINCT} + i, embedding FROM generate_series(1, {times}) AS t, seed"  # noqa: S608
    sql(FIRST, f"CREATE TEMP TABLE seed AS {seed}; INSERT INTO bulk {copies}")
    sql(FIRST, "VACUUM ANALYZE bulk")
    BULK["rows"] = bulk_rows(FIRST)
    # For pg_basebackup, which the site itself does not use.
    ssh(
        FIRST,
        f"sed -i '0,/^local/s//local replication postgres peer\\n&/' {RULES} && systemctl reload {UNIT}",
    )
    wait_archived()
    return made


def throughput() -> dict[str, Any]:
    """Time the same cluster through pg_basebackup, cp -a and pgBackRest, each until it is on disk.

    pgBackRest compresses, encrypts and checks every page, which the others do not; so pg_basebackup is timed with zstd too, at the
    same level as the role's default.
    """
    ssh(FIRST, f"rm -rf {SCRATCH}; mkdir -p {SCRATCH} && chmod 777 {SCRATCH}")
    ssh(FIRST, "command -v zstd >/dev/null || apt-get install -qq -y zstd >/dev/null")
    sql(FIRST, "CHECKPOINT")
    size = int(ssh(FIRST, f"du -sm {DATA} | cut -f1"))
    base_command = "cd / && runuser -u postgres -- pg_basebackup -c fast -X none"
    plain = timed(FIRST, f"{base_command} -D {SCRATCH}/plain")
    packed = timed(FIRST, f"{base_command} -D {SCRATCH}/packed -F t --compress=client-zstd:level=1")
    packed_mb = int(ssh(FIRST, f"du -sm {SCRATCH}/packed | cut -f1"))
    copy = timed(FIRST, f"cp -a {DATA} {SCRATCH}/copy")
    unpacked = timed(
        FIRST,
        f"mkdir {SCRATCH}/unpacked && zstd -dcq {SCRATCH}/packed/base.tar.zst | tar -x -C {SCRATCH}/unpacked",
    )
    ssh(FIRST, f"rm -rf {SCRATCH}")
    results: dict[str, Any] = {
        "cluster_mb": size,
        "pg_basebackup_s": plain,
        "pg_basebackup_zstd_s": packed,
        "pg_basebackup_zstd_mb": packed_mb,
        "unpack_that_s": unpacked,
        "cp_s": copy,
    }
    for number, name in REPOSITORIES.items():
        begun = time.monotonic()
        command = f"pgchroma-backup backup --type full --repository {number} --json && sync"
        taken = json.loads(ssh(FIRST, command))["backups"][0]
        results[f"{name}_backup_s"] = float(taken["seconds"])
        results[f"{name}_backup_with_digests_s"] = time.monotonic() - begun
        results[f"{name}_stored_mb"] = taken["stored_bytes"] // 1_000_000
        back = (
            "pgbackrest --config=/etc/pgbackrest/pgbackrest.conf --stanza=main --archive-mode=off --type=immediate "
            f"--repo={number} --pg1-path={SCRATCH} restore"
        )
        ssh(FIRST, f"install -d -o postgres -m 700 {SCRATCH}")
        results[f"{name}_restore_s"] = timed(FIRST, f"cd / && runuser -u postgres -- {back} >/dev/null")
        ssh(FIRST, f"rm -rf {SCRATCH}")
    for name in REPOSITORIES.values():
        backup, restore = results[f"{name}_backup_s"], results[f"{name}_restore_s"]
        results |= {
            f"{name}_backup_to_pg_basebackup": plain / backup,
            f"{name}_backup_to_pg_basebackup_zstd": packed / backup,
            f"{name}_backup_to_cp": copy / backup,
            f"{name}_restore_to_pg_basebackup": plain / restore,
            f"{name}_restore_to_unpack": unpacked / restore,
            f"{name}_restore_to_cp": copy / restore,
        }
    return results


# Run on the S3 host: what serves S3 there is to compute when nothing else wants to, as if it were a host of its own. Niceness counts
# between sessions only where the session has it too.
STEP_BACK = """
for process in $(pgrep -f '[m]oto.server|[h]aproxy'); do
    renice -n 19 -p $process >/dev/null; echo 19 > /proc/$process/autogroup || true
done
"""


def queries(made: str) -> dict[str, Any]:
    """Measure the latency of queries idle and while the timer's unit takes a full backup, into one repository at a time.

    S3 is served on the same cores by programs for a host of their own, so these have the least weight meanwhile.
    """
    ssh(S3, STEP_BACK)
    url = f"{API}{COLLECTIONS}/{made}/query"
    python(FIRST, QUERIES, url, 200, "")
    results: dict[str, Any] = {}
    for number, name in ((1, "local"), (2, "s3")):
        idle = p95(json.loads(python(FIRST, QUERIES, url, 1000, "")))
        program = f"/usr/local/sbin/pgchroma-backup backup --type full --repository={number}"
        ssh(
            FIRST,
            f"mkdir -p {DROP_IN} && printf '[Service]\nExecStart=\nExecStart={program}\n' > {DROP_IN}/bench.conf; "
            "systemctl daemon-reload; touch /run/bench-backup",
        )
        found: list[str] = []
        thread = threading.Thread(
            target=lambda out: out.append(python(FIRST, QUERIES, url, 0, "/run/bench-backup")), args=(found,)
        )
        thread.start()
        begun = time.monotonic()
        ssh(FIRST, "systemctl start pgchroma-backup@full.service; rm /run/bench-backup")
        results[f"{name}_backup_s"] = time.monotonic() - begun
        thread.join()
        ssh(FIRST, f"rm -r {DROP_IN}; systemctl daemon-reload")
        during = json.loads(found[0])
        results |= {
            f"{name}_idle_p95_ms": idle,
            f"{name}_during_p95_ms": p95(during),
            f"{name}_ratio": p95(during) / idle,
            f"{name}_queries": len(during),
        }
    return results


def destroyed(made: str, number: int) -> dict[str, Any]:
    """Destroy the data directory of a host in service and bring the service back from one repository."""
    sql(FIRST, "SELECT pg_switch_wal()")
    wait_archived()
    ssh(
        FIRST,
        f"systemctl kill -s KILL {UNIT} pgchroma; systemctl stop pgchroma {UNIT}; rm -rf {DATA}; "
        f"systemctl reset-failed {UNIT} pgchroma",
    )
    begun = time.monotonic()
    target = shlex.quote(json.dumps({"latest": True, "repository": number}))
    done = json.loads(
        ssh(
            FIRST, f"pgchroma-backup restore --target {target} --json && systemctl start pgchroma"
        ).splitlines()[0]
    )
    ready(FIRST, made)
    verified(FIRST)
    return {
        "seconds": time.monotonic() - begun,
        "copy_s": done["copy_seconds"],
        "until_writable_s": done["seconds"],
    }


def wait_archived() -> None:
    """Wait until no segment waits to be archived."""
    statement = "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'"
    deadline = time.monotonic() + 180
    while int(sql(FIRST, statement)):
        if time.monotonic() > deadline:
            raise click.ClickException("WAL was not archived within 180 s")
        threading.Event().wait(0.2)


def bulk_rows(host: str) -> int:
    """Return how many rows the bulk table holds; every page of it is read."""
    return int(sql(host, "SELECT count(embedding) FROM bulk"))


def verified(host: str) -> None:
    """See that every row of the bulk table is there."""
    counted = bulk_rows(host)
    if counted != BULK["rows"]:
        raise click.ClickException(f"{counted} of {BULK['rows']} rows of the bulk table came back")


def dropped(made: str) -> dict[str, Any]:
    """Delete a collection through the API, and restore to the moment before: every record of it must be back."""
    before = int(python(FIRST, COUNT, f"{API}{COLLECTIONS}/{made}"))
    moment = sql(FIRST, "SELECT clock_timestamp() AT TIME ZONE 'UTC'") + "Z"
    python(FIRST, DELETE, f"{API}{COLLECTIONS}/bench")
    begun = time.monotonic()
    timeline = sql(FIRST, "SELECT timeline_id FROM pg_control_checkpoint()")
    target = shlex.quote(json.dumps({"time": moment, "repository": 1, "timeline": timeline}))
    command = f"systemctl stop pgchroma; pgchroma-backup restore --stop --target {target} >/dev/null && systemctl start pgchroma"
    ssh(FIRST, command)
    ready(FIRST, made)
    verified(FIRST)
    after = int(python(FIRST, COUNT, f"{API}{COLLECTIONS}/{made}"))
    if after != before:
        raise click.ClickException(f"{after} of {before} records came back")
    took = time.monotonic() - begun
    ssh(FIRST, "pgchroma-backup restore-finish --keep restored")
    return {"seconds": took, "records_before": before, "records_after": after}


def writer(made: str, acknowledged: list[tuple[int, float]], stop: threading.Event) -> None:
    """Note every record the server acknowledges until its host dies."""
    command = [
        str(ROOT / "scripts/machine"),
        "ssh",
        FIRST,
        f"python3 -c {shlex.quote(WRITE)} {API} {COLLECTIONS} {made}",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            number, moment = line.split()
            acknowledged.append((int(number), float(moment)))
            if stop.is_set():
                break
        process.kill()


def disaster(made: str, seconds: float) -> dict[str, Any]:
    """Kill the host while a client writes, recover on a bare host from S3 alone, and count what was acknowledged and lost."""
    acknowledged: list[tuple[int, float]] = []
    stop = threading.Event()
    thread = threading.Thread(target=writer, args=(made, acknowledged, stop))
    thread.start()
    threading.Event().wait(seconds)
    subprocess.run([ROOT / "scripts/machine", "kill", FIRST], check=True, capture_output=True)
    killed = time.time()
    stop.set()
    thread.join()
    begun = time.monotonic()
    command = [
        str(Path(sys.executable).parent / "ansible-playbook"),
        "-i",
        RECOVERY,
    ]
    command += [str(ROOT / "playbooks/disaster_recovery.yml"), "-e", f"confirm={SPARE}"]
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_ROLES_PATH": str(ROOT / "roles"),
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(done.stdout[-3000:])
    ready(SPARE, made)
    verified(SPARE)
    took = time.monotonic() - begun
    count = f"urllib.request.urlopen('{API}{COLLECTIONS}/{made}/count').read().decode()"
    held = int(python(SPARE, f"import urllib.request; print({count})")) - RECORDS
    lost = [moment for number, moment in acknowledged if number >= held]
    return {
        "seconds": took,
        "acknowledged": len(acknowledged),
        "recovered": held,
        "lost": len(lost),
        "lost_span_s": killed - lost[0] if lost else 0.0,
    }


def found() -> str:
    """Return the collection that an earlier call loaded, and count the bulk table."""
    BULK["rows"] = bulk_rows(FIRST)
    return str(json.loads(python(FIRST, GET, f"{API}{COLLECTIONS}/bench"))["id"])


@click.command(help=__doc__)
@click.option("--megabytes", default=1000, show_default=True, help="Size of the vectors.")
@click.option("--tables", default=4, show_default=True, help="How many tables they are in.")
@click.option(
    "--load-seconds", default=60.0, show_default=True, help="How long is written before the host is killed."
)
@click.option(
    "--only", multiple=True, help="Only the measures whose name begins so; `load` fills the database, once."
)
@click.option(
    "--runs",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="How often what can be repeated is measured; medians are told.",
)
@click.option(
    "--check", is_flag=True, help="End with 1 when what is wanted or promised does not hold; needs --runs 3."
)
@click.option("--output", type=click.Path(path_type=Path), help="Also write the results there, as JSON.")
def main(
    megabytes: int,
    tables: int,
    load_seconds: float,
    only: tuple[str, ...],
    runs: int,
    check: bool,
    output: Path | None,
) -> None:
    """Measure everything, in the order in which the machines are used up."""
    if check and runs < 3:
        raise click.UsageError("a figure of fewer than three runs is no ground for a judgement: --runs 3")
    results: dict[str, Any] = {}
    made = load(megabytes, tables) if not only or "load" in only else found()
    # The last cannot be repeated: it uses up both hosts.
    for name, times, measure in (
        ("throughput", runs, throughput),
        ("queries during a backup", runs, lambda: queries(made)),
        ("a collection was deleted, restored to the moment before", runs, lambda: dropped(made)),
        (LOCAL, runs, lambda: destroyed(made, 1)),
        (REMOTE, runs, lambda: destroyed(made, 2)),
        (KILLED, 1, lambda: disaster(made, load_seconds)),
    ):
        if only and not name.startswith(only):
            continue
        results[name] = medians([measure() for _ in range(times)])
        table = Table(title=name, title_justify="left", show_header=False, show_edge=False)
        for key, value in results[name].items():
            table.add_row(key, f"{value:.2f}" if isinstance(value, float) else str(value))
        console.print(table)
        if output is not None:
            output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    bounds = judged(results)
    for holds, text in bounds:
        console.print(f"{'holds' if holds else 'DOES NOT HOLD':<14} {text}", markup=False)
    if check and not all(holds for holds, _ in bounds):
        sys.exit(1)


if __name__ == "__main__":
    main()
