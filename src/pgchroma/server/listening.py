"""The sockets that all workers share, opened before any of them starts."""

import contextlib
import errno
import socket

from pgchroma.errors import ConfigurationError

_BACKLOG = 2048


def listen(host: str, port: int) -> list[socket.socket]:
    """Return listening sockets for every address that `host` stands for; port 0 takes one free port for all of them.

    They listen at once: a request that comes before the workers are ready waits instead of being refused.

    Raises:
        ConfigurationError: names address, port and remedy.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {host}: {error.strerror}",
            hint="set PGCHROMA_HOST or --host to an address of this host",
        ) from error
    with contextlib.ExitStack() as opened:
        sockets: list[socket.socket] = []
        for family, _, _, _, address in dict.fromkeys(found):
            wanted = sockets[0].getsockname()[1] if sockets and port == 0 else port
            listener = opened.enter_context(socket.socket(family, socket.SOCK_STREAM))
            _bind(listener, family, (address[0], wanted, *address[2:]))
            sockets.append(listener)
        opened.pop_all()
    return sockets


def _bind(listener: socket.socket, family: int, address: tuple[object, ...]) -> None:
    host, port = address[0], address[1]
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    try:
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        hint = "set PGCHROMA_HOST or --host to an address of this host"
        if error.errno == errno.EADDRINUSE:
            hint = (
                f"stop what listens there (`ss -ltnp 'sport = :{port}'` shows it) or choose another port by "
                "--port or PGCHROMA_PORT"
            )
        elif error.errno in (errno.EACCES, errno.EPERM):
            hint = "ports below 1024 are for root; choose another by --port or PGCHROMA_PORT"
        raise ConfigurationError(
            f"cannot listen on {host} port {port}: {error.strerror}", hint=hint
        ) from error


def url(listener: socket.socket) -> str:
    """Return the base URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"http://{host}:{port}"
