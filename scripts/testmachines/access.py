"""The lab's SSH key and its list of host keys."""

from __future__ import annotations

from collections.abc import Mapping

from .common import STATE, run, write_file

KEY = STATE / "id_ed25519"
KNOWN_HOSTS = STATE / "known_hosts"


def ssh_options() -> list[str]:
    """Return the ssh options that reach any machine of the lab, with host keys checked against the lab's own list."""
    options = {
        "User": "root",
        "IdentityFile": str(KEY),
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": str(KNOWN_HOSTS),
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "LogLevel": "ERROR",
    }
    return [part for key, value in options.items() for part in ("-o", f"{key}={value}")]


def make_key() -> None:
    """Create the lab's SSH key once; it never leaves the state directory."""
    STATE.mkdir(parents=True, exist_ok=True)
    STATE.chmod(0o700)
    if not KEY.exists():
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "pgchroma test machines", "-f", str(KEY)])


def list_host_keys(keys: Mapping[str, str]) -> None:
    """List the host key at each address: known from the machine's making, so nothing is trusted on first use."""
    write_file(KNOWN_HOSTS, "".join(f"{address} {key}\n" for address, key in keys.items()), 0o600)
