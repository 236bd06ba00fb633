"""Telling systemd how the service is (sd_notify); nothing happens when it did not ask by NOTIFY_SOCKET.

The protocol is one datagram; the package that wraps it has no wheel, so it could not be installed from hash-locked wheels.
"""

import os
import socket


def notify(*assignments: str) -> None:
    """Send assignments such as `READY=1` or `STATUS=two workers` to systemd."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
        notifier.sendto("\n".join(assignments).encode(), address)
