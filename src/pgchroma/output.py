"""The only module that writes to the terminal: results to standard output, everything for a person's eyes to standard error."""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeAlias

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from pgchroma.errors import PgchromaError

Format: TypeAlias = Literal["text", "json"]
TextRenderer: TypeAlias = Callable[[Console], None]


def stdout() -> Console:
    """Return a console on standard output; looked up at each call so that a test's capture is honoured."""
    # Not folded to a terminal that is not there: a log or a pipe gets whole lines.
    width = None if sys.stdout.isatty() else 160
    return Console(file=sys.stdout, width=width, soft_wrap=not sys.stdout.isatty(), highlight=False)


def stderr() -> Console:
    """Return a console on standard error."""
    return Console(file=sys.stderr, soft_wrap=True, highlight=False)


class _Results:
    """Whether the command that runs has written its result: there is one at most."""

    written = False


def begin() -> None:
    """Begin with a command that has written nothing yet."""
    _Results.written = False


def emit(data: object, fmt: Format, text_renderer: TextRenderer | None = None) -> None:
    """Write a command's result: `data` as JSON, or whatever `text_renderer` draws on the console it is given."""
    _Results.written = True
    if fmt == "json" or text_renderer is None:
        line(as_json(data).rstrip("\n"))
        return
    text_renderer(stdout())


def as_json(data: object) -> str:
    """Return a result as JSON text, as `emit` writes it."""
    text = json.dumps(data, indent=2, ensure_ascii=False, default=str) + "\n"
    try:
        text.encode()
    except UnicodeEncodeError:
        # Half of a surrogate pair cannot be written, but escaped.
        return json.dumps(data, indent=2, ensure_ascii=True, default=str) + "\n"
    return text


def line(text: str) -> None:
    """Write text for a program to standard output as it is."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Return a table; columns whose name ends in `>` are right-aligned, cells are shown as they are, without markup."""
    drawn = Table(title=title or None, title_justify="left", title_style="bold", header_style="bold")
    for column in columns:
        right = column.endswith(">")
        drawn.add_column(column.rstrip(">"), justify="right" if right else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(cell if isinstance(cell, Text) else Text(_cell(cell)) for cell in row))
    return drawn


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def status_text(status: str) -> Text:
    """Return a status word in the colour it deserves."""
    good, bad = {"ok", "equal", "verified", "completed"}, {"failed", "different", "error"}
    return Text(status, style="green" if status in good else "bold red" if status in bad else "yellow")


def note(message: str) -> None:
    """Write a line for the person watching to standard error."""
    stderr().print(Text(message))


def error(exc: BaseException) -> None:
    """Write what went wrong and, where one is known, the remedy to standard error."""
    console = stderr()
    message = exc.message if isinstance(exc, PgchromaError) else f"{type(exc).__name__}: {exc}"
    console.print(Text.assemble(("error: ", "bold red"), message))
    if isinstance(exc, PgchromaError) and exc.hint:
        console.print(Text.assemble(("  fix: ", "bold"), exc.hint))


def error_as_json(exc: BaseException, code: int) -> None:
    """Write what went wrong as a JSON object to standard output, unless the command's result stands there."""
    if _Results.written:
        return
    hint = ""
    if isinstance(exc, PgchromaError):
        message, hint = exc.message, exc.hint
    elif isinstance(exc, click.ClickException):
        message = exc.format_message()
    else:
        message = f"{type(exc).__name__}: {exc}"
    told = {"code": code, "kind": type(exc).__name__, "message": message, "hint": hint}
    line(as_json({"error": told}).rstrip("\n"))


def progress() -> Progress:
    """Return a progress display on standard error that stays silent when that is not a terminal."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=stderr(),
        disable=not sys.stderr.isatty(),
    )


_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def size(count: float) -> str:
    """Return a number of bytes in a unit that fits."""
    for unit in _UNITS[:-1]:
        if abs(count) < 1000:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} {_UNITS[-1]}"
