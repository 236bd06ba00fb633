"""The command line of the test machines; see docs/TEST_MACHINES.md."""

from __future__ import annotations

import argparse
import json
import sys

from . import access, base, machine
from .common import MachineError, locked, require_host, say


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/machine",
        description="Test machines: Debian with systemd as PID 1, reached over SSH. Needs root on a Debian 12 or 13 host.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str, *, names: str | None = None) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text)
        if names:
            added.add_argument(
                "name" if names == "one" else "names", metavar="NAME", nargs=None if names == "one" else "+"
            )
        return added

    added = verb("base", "build the cached base tree, unless it is there")
    added.add_argument("--suite", default="trixie", choices=base.SUITES)
    added.add_argument("--rebuild", action="store_true", help="build it anew, with today's packages")
    added = verb("up", "create a machine on a fresh overlay and boot it", names="one")
    added.add_argument("--suite", default="trixie", choices=base.SUITES)
    added.add_argument("--address", help="a fixed address; else the next free one of the automatic range")
    added.add_argument(
        "--owner", default="", help="who makes it; `rm --owner` leaves machines of other owners alone"
    )
    added = verb("ssh", "enter a machine, or run a command in it", names="one")
    added.add_argument("command", nargs=argparse.REMAINDER)
    verb("off", "shut machines down in order", names="many")
    verb("kill", "crash machines: every process ends at once", names="many")
    verb("start", "switch a machine on again, on the files it has", names="many")
    added = verb("rm", "crash and delete machines; the network goes with the last one", names="many")
    added.add_argument("--owner", default="", help="leave a machine in use alone when another owner made it")
    added = verb("list", "list the machines")
    added.add_argument("--json", action="store_true", help="as JSON")
    verb("ssh-config", "print a machine's stanza for ssh_config", names="one")
    return parser


def _list(as_json: bool) -> None:
    rows = [
        (entry.name, entry.state, entry.address, entry.suite, entry.owner) for entry in machine.machines()
    ]
    if as_json:
        keys = ("name", "state", "address", "suite", "owner")
        sys.stdout.write(json.dumps([dict(zip(keys, row, strict=True)) for row in rows]) + "\n")
        return
    for row in [("NAME", "STATE", "ADDRESS", "SUITE", "OWNER"), *rows]:
        sys.stdout.write("{:<24} {:<8} {:<14} {:<9} {}".format(*row).rstrip() + "\n")


def _ssh_config(entry: machine.Machine) -> None:
    options = access.ssh_options()[1::2]
    lines = [
        f"Host {entry.name}",
        f"  HostName {entry.address}",
        *(f"  {option.replace('=', ' ', 1)}" for option in options),
    ]
    sys.stdout.write("\n".join(lines) + "\n")


def _rebuild(suite: str) -> None:
    """Build the base of ``suite`` anew; machines that stand on the present one must go first."""
    with locked(machine.LOCK):
        tree = str(base.base_path(suite))
        users = [entry.name for entry in machine.machines() if entry.base == tree]
        if users:
            raise MachineError(
                f"machines stand on this base tree: first `scripts/machine rm {' '.join(users)}`"
            )
        base.ensure_base(suite, rebuild=True)


def _dispatch(arguments: argparse.Namespace) -> None:
    match arguments.verb:
        case "base" if arguments.rebuild:
            _rebuild(arguments.suite)
        case "base":
            sys.stdout.write(f"{base.ensure_base(arguments.suite)}\n")
        case "up":
            machine.up(
                arguments.name, suite=arguments.suite, address=arguments.address, owner=arguments.owner
            )
        case "ssh":
            machine.enter(machine.load(arguments.name), arguments.command)
        case "off":
            for name in arguments.names:
                machine.power_off(machine.load(name))
        case "kill":
            for name in arguments.names:
                machine.crash(machine.load(name))
        case "start":
            for name in arguments.names:
                machine.start(machine.load(name))
        case "rm":
            for name in arguments.names:
                if not machine.remove(name, owner=arguments.owner):
                    say(f"there is no machine {name}: nothing to remove")
        case "list":
            _list(arguments.json)
        case "ssh-config":
            _ssh_config(machine.load(arguments.name))


def main() -> int:
    """Run one verb; returns the exit status: 0, or 1 with the reason on stderr."""
    arguments = _parser().parse_args()
    try:
        require_host()
        _dispatch(arguments)
    except MachineError as error:
        say(f"machine: {error}")
        return 1
    except KeyboardInterrupt:
        say("machine: interrupted; `scripts/machine list` shows what is there")
        return 130
    return 0
