"""What tenants, databases and collections may be called."""

import ipaddress
import re

from pgchroma.errors import InvalidArgumentError

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{1,510}[a-zA-Z0-9]")


def require(name: str, prefix: str = "") -> None:
    """Raise InvalidArgumentError, its message after `prefix`, unless `name` can be a database's or a collection's."""
    problem = ""
    if not _NAME.fullmatch(name):
        problem = (
            "Expected a name containing 3-512 characters from [a-zA-Z0-9._-], "
            f"starting and ending with a character in [a-zA-Z0-9]. Got: {name}"
        )
    elif ".." in name:
        problem = f"Expected a name that does not contains two consecutive periods (..). Got {name}"
    elif _is_address(name):
        problem = f"Expected a name that is not a valid ip address. Got {name}"
    if problem:
        raise InvalidArgumentError(prefix + problem)


def require_tenant(name: str, prefix: str = "") -> None:
    """Raise InvalidArgumentError, its message after `prefix`, unless a tenant can be created under `name`."""
    if len(name) < 3:
        raise InvalidArgumentError(f"{prefix}Tenant name must be at least 3 characters long")


def _is_address(name: str) -> bool:
    try:
        ipaddress.IPv4Address(name)
    except ValueError:
        return False
    return True
