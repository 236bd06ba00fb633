"""The base tree: a minimal Debian per suite, built once, cached outside the repository, never written to again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

from .common import CACHE, MachineError, locked, run, say

SUITES = ("trixie", "bookworm")
# What a freshly installed small server has; nothing that the roles are to install.
PACKAGES = (
    "ca-certificates",
    "dbus",
    "iproute2",
    "iputils-ping",
    "libpam-systemd",
    "openssh-server",
    "procps",
    "python3",
    "python3-apt",
    "sudo",
    "systemd",
    "systemd-sysv",
    "tzdata",
)
# Raise when the steps below change, so that cached trees of the old kind are not used.
RECIPE = 1
LOCAL_AUTHORITIES = Path("/usr/local/share/ca-certificates")
# Which of the controller's apt settings a machine needs to reach what the controller reaches.
APT_SETTINGS = (
    "Acquire::http::Proxy",
    "Acquire::https::Proxy",
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
)


def _authorities() -> list[Path]:
    """List the extra certificate authorities that the controller trusts."""
    return sorted(LOCAL_AUTHORITIES.glob("*.crt")) if LOCAL_AUTHORITIES.is_dir() else []


def _apt_configuration() -> str:
    """Return an apt.conf: keep downloaded packages, and the controller's way to its mirror."""
    lines = ['APT::Keep-Downloaded-Packages "true";', 'Binary::apt::APT::Keep-Downloaded-Packages "true";']
    for setting in APT_SETTINGS:
        value = run(["apt-config", "shell", "VALUE", setting]).strip()
        if value:
            plain = value.removeprefix("VALUE=").strip("'")
            lines.append(f'{setting} "{plain}";')
    return "".join(f"{line}\n" for line in lines)


def base_path(suite: str) -> Path:
    """Return where the tree of ``suite`` stands or will stand; the name changes when its recipe does.

    Raises:
        MachineError: the suite is not one of SUITES.
    """
    if suite not in SUITES:
        raise MachineError(f"unknown suite {suite!r}: choose one of {', '.join(SUITES)}")
    parts = [suite, *PACKAGES, _apt_configuration(), str(RECIPE)]
    parts += [path.read_text(encoding="utf-8", errors="replace") for path in _authorities()]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
    return CACHE / "bases" / f"{suite}-{digest}"


def ensure_base(suite: str, *, rebuild: bool = False) -> Path:
    """Return the tree of ``suite``, building it first when it is not there (about a minute).

    Several callers at once are safe: one builds, the others wait. A tree appears under its name only when complete.
    With ``rebuild`` the present tree is moved aside first; the caller has made sure that no machine stands on it.

    Raises:
        MachineError: unknown suite, or the build failed; the message names the log.
    """
    target = base_path(suite)
    if target.is_dir() and not rebuild:
        return target
    with locked(target.parent / f".lock-{suite}"):
        if target.is_dir() and rebuild:
            shutil.rmtree(target)
        if not target.is_dir():
            _build(suite, target)
    return target


def _build(suite: str, target: Path) -> None:
    """Build the tree of ``suite`` beside ``target`` and rename it into place."""
    temporary = target.with_name(f".{target.name}.building")
    log = target.with_name(f"{target.name}.log")
    # Only the holder of the lock builds, so what lies here is what an interrupted build left.
    shutil.rmtree(temporary, ignore_errors=True)
    configuration = target.with_name(f".{target.name}.apt.conf")
    configuration.write_text(_apt_configuration(), encoding="utf-8")
    # mmdebstrap reads only the file that APT_CONFIG names and the parts in /etc/apt, which the new tree replaces.
    command = ["mmdebstrap", "--mode=root", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
    command += [
        "--skip=cleanup/apt/lists",
        f"--customize-hook=upload {configuration} /etc/apt/apt.conf.d/90machine",
    ]
    for path in _authorities():
        command.append(f"--customize-hook=upload {path} {LOCAL_AUTHORITIES}/{path.name}")
    for line in (
        "update-ca-certificates",
        "systemctl enable systemd-networkd.service",
        # On a real host these fire at random and hold apt's lock; a test must not depend on when.
        "systemctl disable apt-daily.timer apt-daily-upgrade.timer",
        # Each machine gets host keys and an id of its own.
        "sh -c 'rm -f /etc/ssh/ssh_host_*'",
    ):
        command.append(f'--customize-hook=chroot "$1" {line}')
    command += ['--customize-hook=: > "$1/etc/machine-id"', suite, str(temporary)]
    say(f"building the {suite} base tree in {target} (once; about a minute) ...")
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as output:
        environment = {**os.environ, "TMPDIR": str(target.parent)}
        status = subprocess.run(
            command, stdout=output, stderr=subprocess.STDOUT, check=False, env=environment
        ).returncode
    configuration.unlink()
    if status != 0:
        shutil.rmtree(temporary, ignore_errors=True)
        tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-8:])
        raise MachineError(
            f"mmdebstrap could not build {suite} (status {status}); the whole log is in {log}:\n{tail}"
        )
    temporary.rename(target)
    say(f"built in {time.monotonic() - started:.0f} s")


def packages_directory(suite: str) -> Path:
    """Return where downloaded Debian packages of ``suite`` are kept between machines."""
    return CACHE / "debs" / suite


def lend_packages(suite: str, archives: Path) -> None:
    """Give a machine the packages downloaded earlier, as links in its own apt archive; apt checks their hashes."""
    archives.mkdir(parents=True, exist_ok=True)
    (archives / "partial").mkdir(mode=0o700, exist_ok=True)
    for package in packages_directory(suite).glob("*.deb"):
        _share(package, archives / package.name)


def collect_packages(suite: str, archives: Path) -> None:
    """Keep what a machine downloaded. apt renames complete files only, so a crash leaves nothing half-written here."""
    directory = packages_directory(suite)
    directory.mkdir(parents=True, exist_ok=True)
    for package in archives.glob("*.deb"):
        if package.is_file() and not package.is_symlink() and not (directory / package.name).exists():
            temporary = directory / f".{package.name}.{os.getpid()}"
            _share(package, temporary)
            temporary.rename(directory / package.name)


def _share(source: Path, target: Path) -> None:
    """Link ``source`` to ``target``, or copy it when they lie on different file systems."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
