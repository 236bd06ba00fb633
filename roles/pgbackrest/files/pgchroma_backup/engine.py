"""Calling pgBackRest and PostgreSQL, and saying in plain words what their errors mean."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import CONFIGURATION, DAMAGED, NOT_READY, REFUSED, UNEXPECTED, UNREACHABLE, BackupError
from .settings import Settings

# (pattern in pgBackRest's output, what it means, remedy, exit status); the first that fits counts.
MEANINGS = (
    (
        # A disk that fills in the middle of a write() cuts it short and sets no errno: pgBackRest then says "unable to write" with
        # none, or with one from earlier ([2]). Only an I/O error and a file too large are what they say.
        r"No space left on device|\[Errno 28\]|Disk quota exceeded|unable to write '[^']*'(?!: \[(?:5|27)\])",
        "the disk is full",
        "make room or enlarge it, then run this again; nothing half-written counts as a backup",
        UNEXPECTED,
    ),
    (
        r"unable to acquire lock|lock file .* is held|is already running",
        "another pgBackRest process is at work on this stanza",
        "wait until it has ended (systemctl list-units 'pgchroma-backup*' shows it), then run this again",
        REFUSED,
    ),
    (
        r"NoSuchBucket",
        "the bucket does not exist",
        "make it, or correct s3_bucket and s3_endpoint",
        CONFIGURATION,
    ),
    (
        r"known hosts failure",
        "the host is not known over SSH, or has another key than the known one",
        "compare its /etc/ssh/ssh_host_*_key.pub with what `ssh-keyscan` says; then put all of them into /var/lib/postgresql/.ssh/known_hosts",
        CONFIGURATION,
    ),
    (
        r"public key authentication failed",
        "the host does not let this one in over SSH",
        "private_key_file must be there and readable for postgres, its .pub in the authorized_keys of host_user on that host",
        CONFIGURATION,
    ),
    (
        r"sftp error \[3\]",
        "the user on that host may not write there",
        "give the repository's path there to host_user",
        CONFIGURATION,
    ),
    (
        r"AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|certificate|unable to find hostname",
        "the service does not take the credentials, or its certificate does not fit",
        "correct s3_key and s3_key_secret; storage_ca_file must hold the authority of its certificate",
        CONFIGURATION,
    ),
    (
        r"key/value found outside of section|cipher header invalid|unable to flush|bad decrypt|wrong final block",
        "the passphrase is not the one the repository was encrypted with, or its files are damaged",
        "put the right passphrase into the repository's cipher_passphrase, or into the file in pgbackrest_secrets_dir",
        CONFIGURATION,
    ),
    (
        r"\[ChecksumError\]|ERROR: \[026\]|error restoring .*checksum|checksum invalid|(?:zst|lz4|zlib|bz2) error",
        "a file in the repository is damaged",
        "restore an older set, or from another repository; backup_verify.yml shows what is damaged",
        DAMAGED,
    ),
    (
        r"HostConnectError|unable to connect|unable to get address|Connection refused|Connection timed out|No route to host"
        r"|timeout connecting to|TLS error|ServiceError|\[ProtocolError\]|HTTP request failed|unable to load info file|unable to find a valid repository"
        r"|missing stanza path",
        "the repository cannot be reached, or holds nothing of this stanza",
        "see that its host answers, that its disk is mounted and that the credentials are right, then run this again",
        UNREACHABLE,
    ),
    (
        r"archive_mode must be enabled|archive_command .* must contain",
        "PostgreSQL does not archive its WAL yet",
        "run site.yml with -e postgresql_restart_allowed=true at a time that suits: archive_mode needs a restart",
        NOT_READY,
    ),
    (
        r"WAL segment .* was not archived before|\[ArchiveTimeoutError\]|ERROR: \[082\]",
        "WAL does not reach the repository in time",
        "the PostgreSQL log says why archive_command fails; see that the repository answers and has room",
        UNREACHABLE,
    ),
    (
        r"do not match the database|system-id|ArchiveMismatchError|BackupMismatch",
        "the repository holds backups of another cluster",
        "to bring that cluster back run disaster_recovery.yml; to start afresh give another pgbackrest_stanza or path",
        REFUSED,
    ),
    (
        r"forked from backup timeline|is not in the history of target timeline|invalid target timeline",
        "the set cannot reach the timeline that is to be followed",
        "name an older set or another timeline; backup_info.yml lists the sets. After a restore take a full backup",
        REFUSED,
    ),
    (
        r"unable to connect to 'dbname|could not connect to server|connection to server",
        "PostgreSQL does not answer",
        "systemctl status says why it does not run; start it, then run this again",
        NOT_READY,
    ),
)
ERROR_LINE = re.compile(r"ERROR: \[\d+\]: .*")


@dataclass(frozen=True)
class Done:
    """How a command ended: its status and all it printed; what it printed to stderr is apart where it was asked to be."""

    status: int
    output: str
    errors: str = ""


def as_postgres(command: list[str]) -> list[str]:
    """Return the command so that it runs as the user postgres, whoever calls."""
    return command if os.geteuid() != 0 else ["runuser", "-u", "postgres", "--", *command]


def run(command: list[str], *, text: str = "", timeout: float | None = None, apart: bool = False) -> Done:
    """Run a command as postgres and return how it ended; it runs in / because postgres may not read the caller's folder.

    With ``apart`` what it prints to stderr is not mixed into what it prints to stdout, which is an answer then and must be nothing else.

    Raises:
        BackupError: the program does not exist, or did not end in time.
    """
    try:
        done = subprocess.run(  # noqa: S603
            as_postgres(command),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if apart else subprocess.STDOUT,
            input=text.encode(),
            cwd="/",
            env=environment(),
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as error:
        raise missing(command) from error
    except subprocess.TimeoutExpired as error:
        raise BackupError(
            f"{command[0]} did not end within {timeout:g} s", "run it by hand to see why"
        ) from error
    errors = (done.stderr or b"").decode("utf-8", "replace")
    return Done(done.returncode, done.stdout.decode("utf-8", "replace"), errors)


def environment() -> dict[str, str]:
    """Return the environment that commands run in: messages in English, and no endless wait for a server."""
    return {**os.environ, "LC_ALL": "C.UTF-8", "PGCONNECT_TIMEOUT": "10"}


def missing(command: list[str]) -> BackupError:
    """Return the error of a program that does not exist."""
    return BackupError(f"{command[0]} does not exist", "run site.yml; it installs it", NOT_READY)


def yield_to_queries() -> None:
    """Have this process's niceness count against other sessions too.

    Linux groups processes by session before it looks at niceness (autogroup) wherever no control group has weights, as in some
    containers; the group's own niceness is set here. Where there is no such file nothing needs it.
    """
    try:
        Path("/proc/self/autogroup").write_text(str(os.nice(0)), encoding="ascii")
    except OSError:
        return


def readable(output: str) -> str:
    """Return output for people: without control characters, which the ciphertext in some of pgBackRest's messages has."""
    return "".join(character if character.isprintable() or character == "\n" else "." for character in output)


def explained(what: str, output: str) -> BackupError:
    """Return the error that pgBackRest's output tells of, with a remedy; the tail of the output when it is none known."""
    text = readable(output)
    found = ERROR_LINE.search(text)
    detail = found.group(0)[:300] if found else "\n".join(text.strip().splitlines()[-6:])
    for pattern, meaning, remedy, code in MEANINGS:
        if re.search(pattern, text, re.IGNORECASE):
            return BackupError(f"{what}: {meaning}. pgBackRest says: {detail}", remedy, code)
    return BackupError(
        f"{what} failed. pgBackRest says: {detail}", "journalctl and /var/log/pgbackrest say more"
    )


def on_this_host(what: str, error: OSError) -> BackupError:
    """Return what became of a file of this host as an error with a remedy."""
    told = explained(what, str(error))
    return BackupError(told.message, told.hint, UNEXPECTED)


def command_line(settings: Settings, verb: str, *options: str) -> list[str]:
    """Return the command line of a pgBackRest verb for this host's stanza."""
    return ["pgbackrest", f"--config={settings.config}", f"--stanza={settings.stanza}", *options, verb]


def pgbackrest(settings: Settings, what: str, verb: str, *options: str) -> str:
    """Run a verb and return what it printed.

    Raises:
        BackupError: it failed; the message begins with ``what``.
    """
    done = run(command_line(settings, verb, *options))
    if done.status != 0:
        raise explained(what, done.output)
    return done.output


def information(settings: Settings, number: int = 0) -> dict[str, Any]:
    """Return ``pgbackrest info`` of this stanza: backups, archive ranges, state of each repository, or of one.

    One that does not answer takes its time-out, so ask only those that matter.

    Raises:
        BackupError: pgBackRest failed, or its answer is not to be read.
    """
    options = ["--output=json", "--log-level-console=off", "--log-level-stderr=off"]
    options += [f"--repo={number}"] if number else []
    output = pgbackrest(settings, "reading the repositories", "info", *options)
    try:
        # Not strict: a message about a wrong passphrase has bytes of ciphertext in it, control characters unescaped.
        stanzas: list[dict[str, Any]] = json.loads(output, strict=False)
    except ValueError as error:
        raise explained("reading the repositories", output) from error
    for stanza in stanzas:
        if stanza["name"] == settings.stanza:
            return stanza
    return {"name": settings.stanza, "archive": [], "backup": [], "db": [], "repo": [], "status": {"code": 1}}


def repository_fault(info: dict[str, Any], settings: Settings, number: int) -> BackupError | None:
    """Return what is wrong with a repository as ``info`` found it; a stanza without backups is no fault."""
    for entry in info["repo"]:
        if entry["key"] == number and entry["status"]["code"] not in (0, 2):
            return explained(f"reading {settings.repository(number)}", entry["status"]["message"])
    return None


def holding(settings: Settings, number: int) -> dict[str, Any]:
    """Return what information() does of one repository.

    Raises:
        BackupError: it cannot be read.
    """
    info = information(settings, number)
    fault = repository_fault(info, settings, number)
    if fault is not None:
        raise fault
    return info


def query(
    settings: Settings,
    statement: str,
    *,
    socket: str = "",
    port: int = 0,
    timeout: float | None = 600,
    **values: str,
) -> list[str]:
    """Run SQL as the superuser over the socket and return the lines of its answer, columns separated by tabs.

    Values are bound by psql where the statement has them as ``:'name'``. A warning, such as that the system's collations have another
    version than the database's, is no part of the answer. ``timeout`` is in seconds.

    Raises:
        BackupError: the server does not answer, or refuses the statement.
    """
    command = [f"{settings.bin_dir}/psql", "-XAtq", "-F", "\t", "-v", "ON_ERROR_STOP=1", "-U", "postgres"]
    command += ["-h", socket or settings.socket_dir, "-p", str(port or settings.port), "-d", "postgres"]
    for name, value in values.items():
        command += ["-v", f"{name}={value}"]
    done = run([*command, "-f", "-"], text=statement + ";\n", timeout=timeout, apart=True)
    if done.status != 0:
        hint = f"systemctl status {settings.service} says whether it runs"
        raise BackupError(f"PostgreSQL says: {(done.errors or done.output).strip()}", hint, NOT_READY)
    return done.output.splitlines()


def is_running(settings: Settings) -> bool:
    """Whether a server runs on the cluster's data directory."""
    return pg_ctl(settings, settings.data_dir, "status").status == 0


def pg_ctl(settings: Settings, directory: str | Path, *words: str, timeout: float | None = None) -> Done:
    """Run pg_ctl on a data directory, the cluster's or that of a copy; as run() does."""
    return run([f"{settings.bin_dir}/pg_ctl", "-D", str(directory), *words], timeout=timeout)


def run_as_root(command: list[str]) -> Done:
    """Run a command as the caller, who must be root, and return how it ended."""
    done = subprocess.run(  # noqa: S603
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    return Done(done.returncode, done.stdout)


def server_log(settings: Settings) -> str:
    """Return the end of the server's log: Debian's file, or the journal of its unit where there is none."""
    found = re.search(r"(\d+)-(\w+)", settings.service)
    if found:
        tail = run(
            ["tail", "-n", "4000", f"/var/log/postgresql/postgresql-{found.group(1)}-{found.group(2)}.log"]
        )
        if tail.status == 0:
            return tail.output
    return run_as_root(
        ["journalctl", f"--unit={settings.service}", "--lines=4000", "--no-pager", "--output=cat"]
    ).output


def is_in_recovery(settings: Settings, socket: str = "", port: int = 0) -> bool:
    """Whether a server still replays WAL; one that does not take connections yet counts as such."""
    try:
        return query(settings, "SELECT pg_is_in_recovery()", socket=socket, port=port)[0] != "f"
    except BackupError:
        return True
