"""`--log-file`: what happens, with times, how a command ended and why, at the end of a file."""

import logging
from collections.abc import Mapping
from pathlib import Path

import click

from pgchroma import output
from pgchroma.errors import ConfigurationError, PgchromaError
from pgchroma.exit_codes import ExitCode

logger = logging.getLogger("pgchroma")
# What a verdict consists of, as far as a command's result has it.
_VERDICT = ("run_id", "result", "runnable", "removed", "source_changed", "records", "rows", "receipt", "note")


def _log_to(context: click.Context, option: click.Parameter, path: Path | None) -> None:
    _close()
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"cannot write the log {path}: {error.strerror}", hint="name a place that can be written to"
        ) from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.info("%s begins", context.command_path)


def _files() -> list[logging.FileHandler]:
    return [handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)]


def _close() -> None:
    for handler in _files():
        logger.removeHandler(handler)
        handler.close()


log_file = click.option(
    "--log-file",
    type=click.Path(path_type=Path, dir_okay=False),
    callback=_log_to,
    expose_value=False,
    help="Also write what happens, with times, and how it ends, to the end of this file.",
)


def conclude(found: Mapping[str, object], fmt: output.Format, text: output.TextRenderer) -> None:
    """Write a command's result, and note its verdict in the log."""
    output.emit(found, fmt, text)
    logger.info("ended: %s", ", ".join(f"{key} {found[key]}" for key in _VERDICT if key in found) or "ok")


def log_error(exc: BaseException, code: int) -> None:
    """Note why a command failed, where there is a log file; elsewhere standard error is enough."""
    if not _files():
        return
    if isinstance(exc, PgchromaError):
        what = f"{exc.message} (fix: {exc.hint})" if exc.hint else exc.message
        logger.error("ended with exit code %d: %s", code, what)
    else:
        unexpected = code == ExitCode.UNEXPECTED and isinstance(exc, Exception)
        logger.error("ended with exit code %d: %r", code, exc, exc_info=exc if unexpected else None)
