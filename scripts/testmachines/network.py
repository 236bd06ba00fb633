"""The bridge that all machines share, its way out, and the addresses on it."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path

from .common import BRIDGE, NETWORK, STATE, MachineError, run

SUBNET = ipaddress.ip_network(f"{NETWORK}.0/24")
GATEWAY = f"{NETWORK}.1"
# Left to `machine up` without --address; scenarios take fixed addresses below.
AUTOMATIC = range(100, 250)
TABLE = BRIDGE.replace("-", "_")
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
# Where a host shows the machines' control groups: cgroup v2, or v2 beside v1.
CONTROL_GROUPS = (Path("/sys/fs/cgroup/pgchroma-machines"), Path("/sys/fs/cgroup/unified/pgchroma-machines"))
FORWARDING_BEFORE = STATE / "ip_forward.before"


def check_address(address: str) -> str:
    """Return ``address`` when a machine can have it.

    Raises:
        MachineError: it is not an address of the machines' network, or it is the gateway's.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        raise MachineError(
            f"{address!r} is no IP address; give one of {NETWORK}.2 to {NETWORK}.254"
        ) from None
    if parsed not in SUBNET or str(parsed) == GATEWAY or parsed in (SUBNET[0], SUBNET[-1]):
        raise MachineError(f"{address} is not free for machines: give one of {NETWORK}.2 to {NETWORK}.254")
    return str(parsed)


def pick_address(taken: set[str]) -> str:
    """Return the lowest address of the automatic range that no machine has.

    Raises:
        MachineError: all are taken.
    """
    for number in AUTOMATIC:
        if f"{NETWORK}.{number}" not in taken:
            return f"{NETWORK}.{number}"
    raise MachineError(
        "no address is left: see `scripts/machine list`, remove some with `scripts/machine rm NAME`"
    )


def _bridge_exists() -> bool:
    return Path("/sys/class/net", BRIDGE).is_dir()


def bring_up() -> None:
    """Create the bridge, address translation and forwarding where they are missing. Call with the lab's lock held.

    Raises:
        MachineError: the network belongs to something else on this host, or a command failed.
    """
    if not _bridge_exists():
        for entry in json.loads(run(["ip", "-json", "-4", "address", "show"])):
            for held in entry["addr_info"]:
                if ipaddress.ip_address(held["local"]) in SUBNET:
                    raise MachineError(
                        f"{SUBNET} is in use on {entry['ifname']}; choose another with PGCHROMA_MACHINES_NETWORK=10.92.0"
                    )
        run(["ip", "link", "add", BRIDGE, "type", "bridge"])
        run(["ip", "address", "add", f"{GATEWAY}/24", "dev", BRIDGE])
    run(["ip", "link", "set", BRIDGE, "up"])
    if FORWARDING.read_text().strip() != "1":
        FORWARDING_BEFORE.write_text("0\n")
        FORWARDING.write_text("1\n")
    # Declared, emptied and filled in one transaction: running it again changes nothing.
    # The clamp is for uplinks with an MTU below the bridge's 1500.
    rules = f"""
table ip {TABLE}
delete table ip {TABLE}
table ip {TABLE} {{
  chain translate {{
    type nat hook postrouting priority srcnat
    ip saddr {SUBNET} ip daddr != {SUBNET} masquerade
  }}
  chain forward {{
    type filter hook forward priority filter
    iifname "{BRIDGE}" tcp flags syn tcp option maxseg size set rt mtu
    oifname "{BRIDGE}" tcp flags syn tcp option maxseg size set rt mtu
  }}
}}
"""
    run(["nft", "-f", "-"], input=rules)


def take_down() -> None:
    """Remove what ``bring_up`` made. Call with the lab's lock held, when no machine is left."""
    if _bridge_exists():
        run(["ip", "link", "delete", BRIDGE])
    run(["nft", "-f", "-"], input=f"table ip {TABLE}\ndelete table ip {TABLE}\n")
    groups = [group for group in CONTROL_GROUPS if group.is_dir()]
    if any(path.is_dir() for group in groups for path in group.iterdir()):
        return  # another lab of this computer has machines and needs what is left
    for group in groups:
        group.rmdir()
    if FORWARDING_BEFORE.exists():
        FORWARDING.write_text(FORWARDING_BEFORE.read_text())
        FORWARDING_BEFORE.unlink()


def resolver() -> str:
    """Return the resolv.conf a machine can use: the host's, or its upstream where the host asks itself."""
    text = Path("/etc/resolv.conf").read_text(encoding="utf-8")
    upstream = Path("/run/systemd/resolve/resolv.conf")
    if "nameserver 127." in text and upstream.exists():
        return upstream.read_text(encoding="utf-8")
    return text
