"""The server's settings: environment variables and command-line options, checked once, before anything is started."""

import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pgchroma.errors import ConfigurationError
from pgchroma.server.cors import origins_of
from pgchroma.store import StoreSettings

ENV_PREFIX = "PGCHROMA_"
# Read by other parts of the project; everything else with the prefix is a slip worth a warning.
OTHER_VARIABLES = frozenset(
    {"PGCHROMA_BACKUP_STATE", "PGCHROMA_CACHE", "PGCHROMA_TOKEN_FILE", "PGCHROMA_URL"}
)
_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")
_SECRET_IN_URL = re.compile(r"(?<=:)[^:/@]*(?=@)|(?<=password=)\S+")


@dataclass(frozen=True, slots=True)
class Rules:
    """What a setting does and what values it may have.

    Attributes:
        help: effect and unit.
        minimum, maximum: of a number, inclusive.
        choices: all allowed words.
        alias: another variable for it, which operators of Chroma know.
    """

    help: str
    minimum: float = 0
    maximum: float = 0
    choices: tuple[str, ...] = ()
    alias: str = ""


RULES: dict[str, Rules] = {
    "database_url": Rules("libpq URL or DSN of the database"),
    "host": Rules("address or host name to listen on"),
    "port": Rules("TCP port to listen on; 0 takes a free one", minimum=0, maximum=65535),
    "workers": Rules("number of worker processes", minimum=1, maximum=256),
    "database_password_file": Rules(
        "file with the database password; else $CREDENTIALS_DIRECTORY/database_password where that exists"
    ),
    "pool_size": Rules("database connections per worker, at most", minimum=1, maximum=1000),
    "pool_timeout_seconds": Rules(
        "how long a request waits for a database connection of its worker, in seconds",
        minimum=0.1,
        maximum=300,
    ),
    "pool_waiting": Rules(
        "most requests that wait for a connection of their worker; one more is refused at once",
        minimum=1,
        maximum=1_000_000,
    ),
    "statement_timeout_seconds": Rules(
        "longest run of one SQL statement, in seconds; 0 for no limit", minimum=0, maximum=86_400
    ),
    "request_timeout_seconds": Rules(
        "longest time from a request's head to its answer, in seconds; 0 for no limit",
        minimum=0,
        maximum=86_400,
    ),
    "auth": Rules(
        "who may use the server; token: who sends one; off: everyone who reaches it", choices=("token", "off")
    ),
    "allow_unauthenticated": Rules("listen on other than loopback addresses although auth is off"),
    "cors_allow_origins": Rules(
        "origins whose pages may call the server from a browser, separated by commas or as a JSON list; * for all, empty for none",
        alias="CHROMA_SERVER_CORS_ALLOW_ORIGINS",
    ),
    "allow_reset": Rules("let POST /api/v2/reset delete everything in the database", alias="ALLOW_RESET"),
    "indexer": Rules("build vector indexes in the background"),
    "parallel_index_builds": Rules("build an index with several processes; false for pgvector below 0.8.4"),
    "sketch_memory_mb": Rules(
        "memory per worker for sketches of vectors, by which queries are answered sooner, in MiB; 0 for none",
        minimum=0,
        maximum=65_536,
    ),
    "read_ahead_mb": Rules(
        "memory per worker for the next page of a client that reads a collection out, in MiB; 0 for none",
        minimum=0,
        maximum=4_096,
    ),
    "max_body_bytes": Rules("largest request body, in bytes", minimum=1024, maximum=4 * 1024**3),
    "max_batch_size": Rules("most records in one add, upsert or update", minimum=1, maximum=10_000_000),
    "max_document_bytes": Rules(
        "longest document that is written, in bytes of UTF-8; an index over documents holds none above 60,000,000",
        minimum=1024,
        maximum=60_000_000,
    ),
    "max_dimension": Rules("most numbers in one embedding; pgvector keeps 16000", minimum=1, maximum=16_000),
    "sparse_vectors": Rules(
        "keep and index sparse vectors; false: refuse them as Chroma's single node does, so that all data can move back to one"
    ),
    "max_results": Rules("largest n_results of a query", minimum=1, maximum=10_000_000),
    "max_queries": Rules("most query embeddings in one query", minimum=1, maximum=1_000_000),
    "max_where_depth": Rules("how deep where and where_document may be nested", minimum=2, maximum=200),
    "max_where_conditions": Rules(
        "most conditions in one where or where_document", minimum=1, maximum=20_000
    ),
    "max_regex_length": Rules("longest regular expression, in characters", minimum=1, maximum=1_000_000),
    "regex_timeout_seconds": Rules(
        "longest run of the regular expressions of one request, in seconds; 0 for no limit",
        minimum=0,
        maximum=86_400,
    ),
    "shutdown_seconds": Rules(
        "how long requests in flight may take to finish at a stop, in seconds", minimum=0, maximum=3600
    ),
    "log_level": Rules("least level that is logged", choices=("debug", "info", "warning", "error")),
    "metrics": Rules("answer GET /metrics, for Prometheus"),
    "access_log": Rules("log every request, health checks excepted; failed ones are logged anyway"),
}


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Everything a server process is told; `PGCHROMA_<NAME>` in the environment sets the field `<name>`, see RULES."""

    database_url: str
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 2
    database_password_file: Path | None = None
    pool_size: int = 8
    pool_timeout_seconds: float = 5.0
    pool_waiting: int = 1_000
    statement_timeout_seconds: float = 60.0
    request_timeout_seconds: float = 120.0
    auth: str = "token"
    allow_unauthenticated: bool = False
    cors_allow_origins: str = ""
    allow_reset: bool = False
    indexer: bool = True
    parallel_index_builds: bool = True
    sketch_memory_mb: int = 128
    read_ahead_mb: int = 64
    max_body_bytes: int = 256 * 1024 * 1024
    max_batch_size: int = 100_000
    # What upstream takes in a whole request.
    max_document_bytes: int = 40 * 1024 * 1024
    max_dimension: int = 16_000
    max_results: int = 100_000
    max_queries: int = 10_000
    sparse_vectors: bool = True
    max_where_depth: int = 32
    max_where_conditions: int = 5_000
    max_regex_length: int = 10_000
    regex_timeout_seconds: float = 30.0
    shutdown_seconds: int = 30
    log_level: str = "info"
    access_log: bool = True
    metrics: bool = True

    @classmethod
    def load(
        cls, environment: Mapping[str, str], options: Mapping[str, object] | None = None
    ) -> "ServerSettings":
        """Return the settings of `environment`, overridden by those of `options` that are not None.

        Raises:
            ConfigurationError: names the variable, its value and what is allowed.
        """
        values: dict[str, Any] = {name: value for name, value in (options or {}).items() if value is not None}
        for item in fields(cls):
            if item.name in values:
                _check(item.name, values[item.name], variable_name(item.name))
                continue
            for variable in filter(None, (variable_name(item.name), RULES[item.name].alias)):
                if environment.get(variable, "") != "":
                    values[item.name] = _parse(item.name, item.type, variable, environment[variable])
                    break
        if "database_url" not in values:
            raise ConfigurationError(
                "no database is named",
                hint="set PGCHROMA_DATABASE_URL or give --database-url, e.g. "
                "postgresql:///pgchroma?host=/var/run/postgresql&user=pgchroma_app",
            )
        credentials = environment.get("CREDENTIALS_DIRECTORY")
        if "database_password_file" not in values and credentials:
            path = Path(credentials) / "database_password"
            if path.exists():
                values["database_password_file"] = path
        settings = cls(**values)
        settings._check_exposure()
        origins_of(settings.cors_allow_origins, variable_name("cors_allow_origins"))
        return settings

    def _check_exposure(self) -> None:
        if self.auth != "off" or self.allow_unauthenticated or is_loopback(self.host):
            return
        raise ConfigurationError(
            f"PGCHROMA_HOST={self.host} is reachable from other hosts, and PGCHROMA_AUTH=off lets everyone in",
            hint="leave out PGCHROMA_AUTH=off and give applications tokens, listen on 127.0.0.1 behind a proxy that authenticates, "
            "or accept the risk by PGCHROMA_ALLOW_UNAUTHENTICATED=true",
        )

    def store_settings(self) -> StoreSettings:
        """Return what of this concerns the store of one worker."""
        return StoreSettings(
            pool_size=self.pool_size,
            pool_timeout_seconds=self.pool_timeout_seconds,
            pool_waiting=self.pool_waiting,
            statement_timeout_seconds=self.statement_timeout_seconds,
            password_file=self.database_password_file,
            parallel_index_builds=self.parallel_index_builds,
            sketch_memory_mb=self.sketch_memory_mb,
            regex_timeout_seconds=self.regex_timeout_seconds,
        )

    @property
    def shown_database_url(self) -> str:
        """The database URL with any password blotted out, for logs."""
        return _SECRET_IN_URL.sub("***", self.database_url)


def variable_name(name: str) -> str:
    """Return the environment variable of a setting."""
    return ENV_PREFIX + name.upper()


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Return the variables with our prefix that mean nothing to us."""
    known = {*map(variable_name, RULES), *OTHER_VARIABLES}
    return sorted(name for name in environment if name.startswith(ENV_PREFIX) and name not in known)


def is_loopback(host: str) -> bool:
    """Whether everything that `host` resolves to is reachable from this host only; False when it does not resolve."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_loopback for entry in found)


def _parse(name: str, kind: object, variable: str, text: str) -> object:
    if kind is bool:
        if text.lower() not in (*_TRUE, *_FALSE):
            raise ConfigurationError(f"{variable}={text} is not a truth value", hint="use true or false")
        return text.lower() in _TRUE
    if kind is int or kind is float:
        try:
            number = int(text) if kind is int else float(text)
        except ValueError:
            raise ConfigurationError(
                f"{variable}={text} is not a number", hint=_allowed(name, variable)
            ) from None
        _check(name, number, variable)
        return number
    if kind is str:
        _check(name, text, variable)
        return text
    return Path(text)


def _check(name: str, value: object, variable: str) -> None:
    rules = RULES[name]
    if rules.choices and value not in rules.choices:
        raise ConfigurationError(f"{variable}={value} is not known", hint=_allowed(name, variable))
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and not rules.minimum <= value <= rules.maximum:  # type: ignore[operator]
        raise ConfigurationError(f"{variable}={value} is out of range", hint=_allowed(name, variable))


def _allowed(name: str, variable: str) -> str:
    rules = RULES[name]
    if rules.choices:
        return f"{variable} is one of: {', '.join(rules.choices)}"
    return f"{variable} is a number from {rules.minimum} to {rules.maximum}"


def environment_settings(options: Mapping[str, object] | None = None) -> ServerSettings:
    """Return the settings of this process's environment and the given options."""
    return ServerSettings.load(os.environ, options)
