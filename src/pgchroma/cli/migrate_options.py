"""The options of `pgchroma migrate` that several of its commands share, and what they amount to."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import click

from pgchroma.cli import options
from pgchroma.cli.options import required_url
from pgchroma.errors import InterruptedMigrationError
from pgchroma.migrate import places
from pgchroma.migrate.places import Options, Place
from pgchroma.migrate.policies import DANGERS, Policies
from pgchroma.migrate.remote import versions
from pgchroma.migrate.second import SecondProcess, second_process
from pgchroma.migrate.selection import parse_renames, parse_scopes

Command = TypeVar("Command", bound=Callable[..., Any])
Result = TypeVar("Result")

_FILE = click.Path(path_type=Path, dir_okay=False)

source_argument = click.argument("source")

receipt_out = options.receipt_out("migration")


def _together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _access(side: str) -> Callable[[Command], Command]:
    name = side.upper()
    return _together(
        click.option(
            f"--{side}-token-file",
            type=_FILE,
            envvar=f"PGCHROMA_{name}_TOKEN_FILE",
            help=f"File holding the bearer token that the {side}'s server asks for.",
        ),
        click.option(
            f"--{side}-headers-file",
            type=_FILE,
            help=f"File of `Name: value` lines that the {side}'s server is sent with every request.",
        ),
        click.option(
            f"--{side}-password-file",
            type=_FILE,
            help=f"File holding the password of the {side}'s database. Default: that of --database-password-file.",
        ),
    )


source_access = _access("source")
target_place = _together(
    click.option(
        "--to",
        "target",
        help="Where to: a folder, http(s)://, postgresql://, FILE.jsonl[.zst] or DIR.parquet. Default: the database of --database-url.",
    ),
    _access("target"),
)
target_options = _together(
    target_place,
    click.option(
        "--chromadb-version",
        help=f"The release of chromadb that writes a target folder. Default: {versions.DEFAULT}, or with --since the one of its layout.",
    ),
    click.option(
        "--chromadb-python",
        type=_FILE,
        help="A Python that has this release installed, for a host without a package registry.",
    ),
)
scope_option = click.option(
    "--scope",
    "scopes",
    multiple=True,
    metavar="TENANT[/DATABASE[/COLLECTION]]",
    help="Move only this. Also names tenants of a server that cannot list them. May be repeated.",
)
selection_options = _together(
    scope_option,
    click.option(
        "--rename",
        "renames",
        multiple=True,
        metavar="TENANT/DATABASE/COLLECTION=NEW",
        help="Give a collection another name in the target. May be repeated.",
    ),
)
policy_options = _together(
    click.option(
        "--policy",
        "policies",
        multiple=True,
        metavar="DANGER=ACTION",
        help="What becomes of records that cannot be moved as they are: "
        + "; ".join(f"{code}={'|'.join(danger.actions)}" for code, danger in DANGERS.items())
        + ". The first action is the default. May be repeated.",
    ),
    click.option(
        "--skip-unreadable",
        is_flag=True,
        help="Short for vector-missing, vector-not-finite and vector-dimension =quarantine.",
    ),
)
export_places = _together(
    click.argument("named", metavar="[SOURCE] TARGET", nargs=-1),
    click.option("--from", "source", help="The same as SOURCE. Default: the database of --database-url."),
    click.option("--to", "target", help="The same as TARGET."),
)


@dataclass(frozen=True, slots=True)
class Given:
    """What the shared options of a command amount to."""

    options: Options
    policies: Policies
    scopes: tuple[str, ...]

    @classmethod
    def of(cls, given: dict[str, Any]) -> "Given":
        """Return it; ConfigurationError for options that mean nothing."""
        options = Options(
            work_folder=given.get("work_folder"),
            scopes=tuple(parse_scopes(given.get("scopes", ()))),
            renames=parse_renames(given.get("renames", ())),
            chromadb_version=given.get("chromadb_version"),
            chromadb_python=given.get("chromadb_python"),
        )
        policies = Policies.of(given.get("policies", ()), skip_unreadable=bool(given.get("skip_unreadable")))
        return cls(options, policies, tuple(given.get("scopes", ())))

    def with_version(self, version: str | None) -> Options:
        """Return the options with a chromadb release where the operator chose none."""
        return replace(self.options, chromadb_version=self.options.chromadb_version or version)


def place_of(text: str, side: str, given: dict[str, Any]) -> Place:
    """Return a side's place with its credentials."""
    kind = places.kind_of(text)
    headers = places.headers_from(given.get(f"{side}_token_file"), given.get(f"{side}_headers_file"))
    password = _password(side, given) if kind == "pgchroma-database" else None
    return Place(kind, text, headers, password)


def _password(side: str, given: dict[str, Any]) -> Path | None:
    """Return the password file of a side that is a database: both may be, of clusters of their own."""
    found: Path | None = given.get(f"{side}_password_file") or given.get("database_password_file")
    return found


def target_of(given: dict[str, Any]) -> Place:
    """Return the place of --to, else the database; ConfigurationError when neither is given."""
    if given.get("target"):
        return place_of(given["target"], "target", given)
    # A DSN of key=value pairs has no scheme to be told by.
    return Place(
        "pgchroma-database",
        required_url(given.get("database_url")),
        password_file=_password("target", given),
    )


def exported(named: tuple[str, ...], source: str | None, target: str | None) -> tuple[str | None, str]:
    """Return what an export is told to read, if anything, and to write, in whichever way they are named."""
    *before, goal = (*named, target) if target else named or (None,)
    if goal is None or len(before) + bool(source) > 1:
        raise click.UsageError("name [SOURCE] TARGET, by their places or by --from and --to")
    return source or (before[0] if before else None), goal


def reading_process(
    source: Place | None, target: Place
) -> contextlib.AbstractContextManager[SecondProcess | None]:
    """Start a second process where it can take the reading over: from a folder, or from what is not known yet, to a database."""
    useful = target.is_database and (source is None or source.kind == "chroma-folder")
    return second_process() if useful else contextlib.nullcontext()


def carry_out(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine; an interrupt or SIGTERM ends it between two batches."""

    async def watched() -> Result:
        task = asyncio.ensure_future(work)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await task

    try:
        return asyncio.run(watched())
    except (KeyboardInterrupt, asyncio.CancelledError) as error:
        raise InterruptedMigrationError(
            "stopped before the end",
            hint="what was committed stands; if a run had begun (see `pgchroma migrate status`), continue it with "
            "`pgchroma migrate resume`",
        ) from error
