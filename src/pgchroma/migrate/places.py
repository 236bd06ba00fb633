"""Where data come from and go to, as one writes it on a command line, and how each kind of place is opened.

DIR                                a Chroma folder (with chroma.sqlite3)
http://HOST:PORT, https://...      a Chroma server, or pgchroma's
postgresql://..., postgres://...   a pgchroma database
FILE.jsonl, FILE.jsonl.zst         exchange file
DIR.parquet                        exchange folder
"""

import asyncio
import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from pgchroma.errors import ConfigurationError, RefusedError, SourceError
from pgchroma.migrate.chroma.folder import open_folder
from pgchroma.migrate.database import open_database, settings_for
from pgchroma.migrate.exchange.jsonl import open_jsonl
from pgchroma.migrate.exchange.sink import ExchangeSink
from pgchroma.migrate.model import Sink, Source
from pgchroma.migrate.remote import versions
from pgchroma.migrate.remote.client import Access
from pgchroma.migrate.remote.folder import FolderSink
from pgchroma.migrate.remote.sink import open_sink as open_server_sink
from pgchroma.migrate.remote.source import open_server
from pgchroma.migrate.selection import Scope, Selected
from pgchroma.migrate.sink import StoreSink
from pgchroma.store import Store, migrations

# libpq's other notation: key=value pairs.
_KEY_VALUE = re.compile(r"\s*(host|hostaddr|port|dbname|user|service)\s*=")

Kind: TypeAlias = Literal[
    "chroma-folder", "chroma-server", "pgchroma-database", "exchange-jsonl", "exchange-parquet"
]


@dataclass(frozen=True, slots=True)
class Place:
    """One side of a migration.

    Attributes:
        text: as the operator wrote it; may hold a password.
        headers: what a server is told with every request.
        password_file: of a database.
    """

    kind: Kind
    text: str
    headers: Mapping[str, str] = field(default_factory=dict)
    password_file: Path | None = None

    @property
    def path(self) -> Path:
        """The place as a path; for folders and files."""
        return Path(self.text)

    @property
    def is_database(self) -> bool:
        """Whether checkpoints can be kept beside the data."""
        return self.kind == "pgchroma-database"


@dataclass(frozen=True, slots=True)
class Options:
    """What applies to opening places.

    Attributes:
        work_folder: for private copies; the system's temporary folder when None.
        wanted: the operator named the scopes, so each must be there.
        chromadb_version: the release that writes a folder; None for the default.
        chromadb_python: an interpreter that has it.
    """

    work_folder: Path | None = None
    scopes: tuple[Scope, ...] = ()
    wanted: bool = True
    renames: Mapping[str, str] = field(default_factory=dict)
    chromadb_version: str | None = None
    chromadb_python: Path | None = None


def kind_of(text: str) -> Kind:
    """Return what kind of place a text names; ConfigurationError for a scheme that is none of ours."""
    scheme, separator, _ = text.partition("://")
    if separator:
        if scheme in ("http", "https"):
            return "chroma-server"
        if scheme in ("postgresql", "postgres"):
            return "pgchroma-database"
        raise ConfigurationError(
            f"{text!r}: no place is called {scheme}://",
            hint="a folder, http(s)://, postgresql://, FILE.jsonl[.zst] or DIR.parquet",
        )
    if _KEY_VALUE.match(text):
        return "pgchroma-database"
    if text.endswith((".jsonl", ".jsonl.zst")):
        return "exchange-jsonl"
    return "exchange-parquet" if text.rstrip("/").endswith(".parquet") else "chroma-folder"


def headers_from(token_file: Path | None, headers_file: Path | None) -> dict[str, str]:
    """Return the headers of a token file (one line, sent as a bearer token) and of a file of `Name: value` lines."""
    headers = {}
    try:
        if token_file:
            headers["Authorization"] = f"Bearer {_ascii(token_file).strip()}"
        for line in _ascii(headers_file).splitlines() if headers_file else ():
            if line.strip():
                name, separator, value = line.partition(":")
                if not separator:
                    raise ConfigurationError(
                        f"{headers_file} holds a line that is no header", hint="write Name: value"
                    )
                headers[name.strip()] = value.strip()
    except OSError as error:
        raise ConfigurationError(
            f"cannot read {error.filename}: {error.strerror}", hint="check the file's owner and mode"
        ) from error
    return headers


def _ascii(path: Path) -> str:
    """Return the text of a file; ConfigurationError for what no header can hold."""
    try:
        return path.read_bytes().decode("ascii")
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"{path} holds something else than ASCII text",
            hint="name a file that holds nothing but the token or headers",
        ) from error


@contextlib.contextmanager
def open_source(place: Place, options: Options) -> Iterator[Source]:
    """Open a place as a source for as long as the context lasts; nothing is ever written to it.

    Raises:
        SourceError, DatabaseUnreachableError, RefusedError: it cannot be read.
        SourceChangedError: a folder whose application keeps writing.
    """
    with contextlib.ExitStack() as stack:
        source: Source
        if place.kind == "chroma-server":
            source = stack.enter_context(open_server(Access(place.text, place.headers), options.scopes))
        elif place.kind == "pgchroma-database":
            source = stack.enter_context(open_database(place.text, settings_for(place.password_file)))
        elif place.kind == "exchange-jsonl":
            source = stack.enter_context(open_jsonl(place.path, options.work_folder))
        elif place.kind == "exchange-parquet":
            # Only here: Arrow takes a while to load.
            from pgchroma.migrate.exchange.parquet import open_parquet

            source = stack.enter_context(open_parquet(place.path))
        else:
            source = stack.enter_context(open_folder(place.path, options.work_folder))
        if options.scopes or options.renames:
            source = Selected(source, options.scopes, options.renames, wanted=options.wanted)
        yield source


async def open_sink(place: Place, options: Options, receipt_path: Path, *, base: Path | None = None) -> Sink:
    """Open a place as the target of a run; the caller closes it.

    Args:
        receipt_path: where the receipt will be; journal and log stand beside it.
        base: a Chroma folder that is to be changed instead of written anew, or exchange files that are to be replaced.
    """
    if place.kind == "pgchroma-database":
        settings = settings_for(place.password_file)
        # A connection of its own says at once, and once, why there is none; the pool would try for a while.
        await migrations.schema_versions(place.text, settings)
        store = await Store.open(place.text, settings)
        try:
            await store.check_ready(timeout_seconds=10.0)
        except BaseException:
            await store.close()
            raise
        return StoreSink(store, place.text)
    if place.kind == "chroma-server":
        return await asyncio.to_thread(open_server_sink, Access(place.text, place.headers), receipt_path)
    if place.kind in ("exchange-jsonl", "exchange-parquet"):
        return ExchangeSink(
            place.path,
            receipt_path,
            parquet=place.kind == "exchange-parquet",
            work_folder=options.work_folder,
            replaces=base is not None,
        )
    return await asyncio.to_thread(
        FolderSink,
        place.path,
        receipt_path,
        options.chromadb_version or versions.DEFAULT,
        python=options.chromadb_python,
        work_folder=options.work_folder,
        base=base,
    )


def require_existing(place: Place) -> None:
    """Raise SourceError when a folder or file that is to be read is not there."""
    if place.kind in ("chroma-folder", "exchange-jsonl", "exchange-parquet") and not place.path.exists():
        raise SourceError(f"the source {place.text} is gone", hint="name its new place")


def require_different(source: Place, target: Place) -> None:
    """Raise RefusedError when both sides are the same place."""
    same = source.text == target.text
    if not same and source.kind == target.kind and source.kind.startswith(("chroma-folder", "exchange")):
        same = source.path.resolve() == target.path.resolve()
    if same:
        raise RefusedError("source and target are the same place", hint="name another target by --to")
