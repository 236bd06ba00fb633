"""Errors with a remedy, and the exit statuses, which are those of the command pgchroma."""

from __future__ import annotations

from typing import Any

OK, UNEXPECTED, USAGE, CONFIGURATION, UNREACHABLE, NOT_READY = 0, 1, 2, 3, 4, 5
DAMAGED, REFUSED, INTERRUPTED = 8, 9, 10


class BackupError(Exception):
    """What went wrong, what to do about it, the exit status that tells its kind, and the receipt of what was done, where there is one."""

    receipt: dict[str, Any] | None = None

    def __init__(self, message: str, hint: str, code: int = UNEXPECTED) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code

    def as_json(self, kind: str) -> dict[str, Any]:
        """Return the failure of a verb as its result."""
        told = {
            "kind": kind,
            "result": "failed",
            "status": self.code,
            "error": self.message,
            "hint": self.hint,
        }
        return told if self.receipt is None else {**told, "receipt": self.receipt}

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class RefusedError(BackupError):
    """Something that must not be done, or not yet; nothing was changed."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message, hint, REFUSED)


class DamagedError(BackupError):
    """A backup, a repository or the cluster holds something that is not what was written."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message, hint, DAMAGED)


def joined(errors: list[BackupError]) -> BackupError:
    """Return several errors as one; the gravest exit status counts."""
    if len(errors) == 1:
        return errors[0]
    text = "\n".join(f"- {error.message}\n  {error.hint}" for error in errors)
    return BackupError(f"{len(errors)} things went wrong:\n{text}", "", max(error.code for error in errors))
