"""One machine: its record, its files, and what can be done to it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

from . import access, base, network
from .common import (
    BRIDGE,
    NETWORK,
    STATE,
    MachineError,
    check_name,
    is_locked,
    locked,
    run,
    say,
    wait_until,
    write_file,
)

MACHINES = STATE / "machines"
LOCK = STATE / "lock"
SUPERVISOR = Path(__file__).resolve().parent / "supervisor"
BOOT_SECONDS = 90.0
OFF_SECONDS = 90.0


@dataclasses.dataclass
class Machine:
    """What is known of a machine, kept as JSON beside its overlay."""

    name: str
    address: str
    suite: str
    base: str
    host_key: str
    owner: str = ""
    # Whether someone switched it off; a machine that is meant to be on and is not has died with its session.
    wanted_on: bool = True

    @property
    def directory(self) -> Path:
        """Where everything of this machine lies."""
        return MACHINES / self.name

    @property
    def running(self) -> bool:
        """Whether its supervisor lives; the kernel answers, so a stale pid cannot mislead."""
        return is_locked(self.directory / "running")

    @property
    def state(self) -> str:
        """``running``, ``off`` (switched off or crashed on request) or ``dead`` (its session ended)."""
        if self.running:
            return "running"
        return "off" if not self.wanted_on or self.powered_off.exists() else "dead"

    @property
    def powered_off(self) -> Path:
        """Written by the supervisor when the machine ended because it powered itself off."""
        return self.directory / "powered-off"

    def save(self) -> None:
        """Write the record."""
        write_file(self.directory / "machine.json", json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    def supervisor_pid(self) -> int:
        """Return the supervisor's process id; only meaningful while ``running``."""
        return int((self.directory / "supervisor.pid").read_text(encoding="utf-8"))


def machines() -> list[Machine]:
    """List every machine of the lab by name."""
    return [load(path.parent.name) for path in sorted(MACHINES.glob("*/machine.json"))]


def load(name: str) -> Machine:
    """Return the machine ``name``.

    Raises:
        MachineError: there is none.
    """
    path = MACHINES / check_name(name) / "machine.json"
    if not path.exists():
        raise MachineError(
            f"there is no machine {name}; `scripts/machine list` shows those there are, `up {name}` makes it"
        )
    return Machine(**json.loads(path.read_text(encoding="utf-8")))


def up(name: str, *, suite: str, address: str | None, owner: str) -> Machine:
    """Create ``name`` on a fresh overlay and boot it; returns when its services are up and SSH answers.

    A machine of that name that died with its session is replaced. One that runs, or was switched off on purpose, is not.

    Raises:
        MachineError: name or address in use, or it did not boot.
    """
    check_name(name)
    tree = base.ensure_base(suite)
    with locked(LOCK):
        _make_way(name)
        taken = {machine.address: machine for machine in machines()}
        address = network.pick_address(set(taken)) if address is None else network.check_address(address)
        if address in taken:
            holder = taken[address]
            raise MachineError(
                f"{address} belongs to machine {holder.name} ({holder.state}): choose another address, "
                f"or remove it with `scripts/machine rm {holder.name}`"
            )
        access.make_key()
        machine = _create(name, address, suite, tree, owner)
        access.list_host_keys({entry.address: entry.host_key for entry in machines()})
        network.bring_up()
        _power_on(machine)
    _wait_for_boot(machine)
    return machine


def _make_way(name: str) -> None:
    """Remove what is left of a dead machine ``name``; refuse when it is alive or off on purpose."""
    directory = MACHINES / name
    if not (directory / "machine.json").exists():
        shutil.rmtree(directory, ignore_errors=True)  # an interrupted creation
        return
    machine = load(name)
    if machine.state == "dead":
        say(f"{name} died with the session that ran it; starting afresh")
        _discard(machine)
        return
    remedy = f"`scripts/machine rm {name}`" + (
        f" or `scripts/machine start {name}`" if machine.state == "off" else ""
    )
    owner = f", made by {machine.owner}" if machine.owner else ""
    raise MachineError(
        f"machine {name} already exists ({machine.state} at {machine.address}{owner}): {remedy}"
    )


def _create(name: str, address: str, suite: str, tree: Path, owner: str) -> Machine:
    """Write the files that make a copy of the base tree this machine."""
    directory = MACHINES / name
    upper = directory / "upper"
    for part in ("upper", "work", "root"):
        (directory / part).mkdir(parents=True)
    # A directory that is new in the upper layer hides nothing, but its mode and owner win over the base's.
    write_file(upper / "etc/hostname", f"{name}\n")
    write_file(upper / "etc/hosts", f"127.0.0.1 localhost\n::1 localhost ip6-localhost\n127.0.1.1 {name}\n")
    write_file(upper / "etc/resolv.conf", network.resolver())
    write_file(upper / "etc/machine-id", f"{uuid.uuid4().hex}\n", 0o444)
    write_file(
        upper / "etc/systemd/network/10-lan.network",
        f"[Match]\nName=host0\n\n[Network]\nAddress={address}/24\nGateway={NETWORK}.1\n"
        "LinkLocalAddressing=no\nIPv6AcceptRA=no\nLLDP=no\n",
    )
    write_file(
        upper / "root/.ssh/authorized_keys", access.KEY.with_suffix(".pub").read_text(encoding="utf-8"), 0o600
    )
    (upper / "root/.ssh").chmod(0o700)
    (upper / "root").chmod(0o700)
    host_key = upper / "etc/ssh/ssh_host_ed25519_key"
    host_key.parent.mkdir()
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"root@{name}", "-f", str(host_key)])
    base.lend_packages(suite, upper / "var/cache/apt/archives")
    public = " ".join(host_key.with_suffix(".pub").read_text(encoding="utf-8").split()[:2])
    machine = Machine(name=name, address=address, suite=suite, base=str(tree), host_key=public, owner=owner)
    machine.save()
    return machine


def _power_on(machine: Machine) -> None:
    """Start the supervisor of ``machine`` in its own session and mount namespace."""
    machine.wanted_on = True
    machine.powered_off.unlink(missing_ok=True)
    machine.save()
    command = ["unshare", "--mount", "--propagation", "slave", str(SUPERVISOR)]
    command += [machine.name, str(machine.directory), machine.base, BRIDGE]
    with (machine.directory / "console.log").open("ab") as console:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd="/",
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
        )
    if (
        not wait_until(lambda: machine.running or process.poll() is not None, 10)
        or process.poll() is not None
    ):
        raise MachineError(f"{machine.name} did not start: {_console_tail(machine)}")


def _console_tail(machine: Machine) -> str:
    path = machine.directory / "console.log"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-12:]
    return "\n".join([f"the end of {path}:", *lines])


def _answers(machine: Machine) -> bool:
    try:
        with socket.create_connection((machine.address, 22), timeout=1):
            return True
    except OSError:
        return False


def _wait_for_boot(machine: Machine) -> None:
    """Wait until the machine's own systemd says that it is up.

    Raises:
        MachineError: it died, or is not up within BOOT_SECONDS; the message ends with its console.
    """
    started = time.monotonic()
    state = ""

    def is_up() -> bool:
        nonlocal state
        if not machine.running:
            raise MachineError(f"{machine.name} died while booting: {_console_tail(machine)}")
        if not _answers(machine):
            return False
        command = [
            "ssh",
            *access.ssh_options(),
            "-o",
            "ConnectTimeout=5",
            machine.address,
            "systemctl is-system-running --wait",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        state = done.stdout.strip() or done.stderr.strip()
        return state in ("running", "degraded")

    if not wait_until(is_up, BOOT_SECONDS):
        detail = state or "SSH does not answer"
        raise MachineError(
            f"{machine.name} is not up after {BOOT_SECONDS:.0f} s ({detail}): {_console_tail(machine)}"
        )
    say(
        f"{machine.name} {state} at {machine.address} ({machine.suite}) after {time.monotonic() - started:.1f} s"
    )


def start(machine: Machine) -> None:
    """Switch a machine on again on the overlay it has.

    Raises:
        MachineError: it already runs, its base tree is gone, or it did not boot.
    """
    if machine.running:
        raise MachineError(f"{machine.name} is already running at {machine.address}")
    if not Path(machine.base).is_dir():
        raise MachineError(
            f"the base tree {machine.base} of {machine.name} is gone: make the machine anew with "
            f"`scripts/machine rm {machine.name}` and `scripts/machine up {machine.name}`"
        )
    with locked(LOCK):
        network.bring_up()
        _power_on(machine)
    _wait_for_boot(machine)


def power_off(machine: Machine) -> None:
    """Ask the machine to shut down in order, and wait until it has.

    Raises:
        MachineError: it did not within OFF_SECONDS.
    """
    _mark_off(machine)
    if machine.running:
        os.kill(machine.supervisor_pid(), signal.SIGTERM)
        if not wait_until(lambda: not machine.running, OFF_SECONDS):
            raise MachineError(
                f"{machine.name} does not shut down within {OFF_SECONDS:.0f} s; crash it with "
                f"`scripts/machine kill {machine.name}`. {_console_tail(machine)}"
            )
    base.collect_packages(machine.suite, machine.directory / "upper/var/cache/apt/archives")


def crash(machine: Machine) -> None:
    """End every process of the machine at once, without warning, and wait until the last is gone."""
    _mark_off(machine)
    if machine.running:
        # The control group as the supervisor's namespace shows it; on a v1 host it is mounted nowhere else.
        group = Path(f"/proc/{machine.supervisor_pid()}/root/sys/fs/cgroup/pgchroma-machines/{machine.name}")
        (group / "cgroup.kill").write_text("1")
        if not wait_until(lambda: not machine.running, 20):
            raise MachineError(
                f"{machine.name} survives being killed: see `ps` for pid {machine.supervisor_pid()}"
            )
    base.collect_packages(machine.suite, machine.directory / "upper/var/cache/apt/archives")


def _clear_leftovers(name: str) -> None:
    """End what a machine without a supervisor may still have running, and remove its control group."""
    for parent in network.CONTROL_GROUPS:
        group = parent / name
        if not (group / "cgroup.kill").exists():
            continue
        (group / "cgroup.kill").write_text("1")
        if not wait_until(lambda: "populated 0" in (group / "cgroup.events").read_text(), 20):  # noqa: B023
            raise MachineError(
                f"processes of {name} survive being killed; they are listed in {group}/*/cgroup.procs"
            )
        for path, _, _ in os.walk(group, topdown=False):
            Path(path).rmdir()


def _mark_off(machine: Machine) -> None:
    machine.wanted_on = False
    machine.save()


def remove(name: str, *, owner: str) -> bool:
    """Crash and delete ``name``, and the network with the last machine. Tell whether there was anything to remove.

    With ``owner`` given, a machine in use that someone else made is left alone.

    Raises:
        MachineError: it belongs to another owner.
    """
    check_name(name)
    with locked(LOCK):
        if not (MACHINES / name / "machine.json").exists():
            existed = (MACHINES / name).exists()
            shutil.rmtree(MACHINES / name, ignore_errors=True)
            if not machines():
                network.take_down()
            return existed
        machine = load(name)
        if owner and machine.owner != owner and machine.state != "dead":
            raise MachineError(
                f"{name} is {machine.state} and was made by {machine.owner or 'hand'}: "
                f"when that is over, remove it with `scripts/machine rm {name}`"
            )
        _discard(machine)
        access.list_host_keys({entry.address: entry.host_key for entry in machines()})
        if not machines():
            network.take_down()
    return True


def _discard(machine: Machine) -> None:
    """Crash ``machine`` and delete its files."""
    crash(machine)
    # Out of sight first: a deletion that is cut short leaves no half machine under the name.
    grave = MACHINES / f".{machine.name}.{os.getpid()}"
    machine.directory.rename(grave)
    shutil.rmtree(grave)


def enter(machine: Machine, command: list[str]) -> None:
    """Replace this process by ssh into ``machine``.

    Raises:
        MachineError: the machine does not run.
    """
    if not machine.running:
        raise MachineError(
            f"{machine.name} is {machine.state}: `scripts/machine start {machine.name}` switches it on"
        )
    sys.stdout.flush()
    os.execvp("ssh", ["ssh", *access.ssh_options(), machine.address, *command])  # noqa: S606
