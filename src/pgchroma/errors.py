"""The exception tree: every error names the thing that is wrong and, as a hint, the remedy."""

from pgchroma.exit_codes import ExitCode


class PgchromaError(Exception):
    """Base of all expected errors.

    Attributes:
        message: what is wrong, naming the thing.
        hint: what to do about it, or an empty string.
        exit_code: the process exit status a command ends with.
    """

    exit_code = ExitCode.UNEXPECTED

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigurationError(PgchromaError):
    """A setting is missing, contradictory or out of range."""

    exit_code = ExitCode.CONFIGURATION


class UsageError(ConfigurationError):
    """An option or argument of a command that makes no sense."""

    exit_code = ExitCode.USAGE


class DatabaseUnreachableError(PgchromaError):
    """PostgreSQL does not answer or refuses the login."""

    exit_code = ExitCode.DATABASE_UNREACHABLE


class BusyError(DatabaseUnreachableError):
    """Every connection of the process is in use, and none became free in time."""


class ContentionError(DatabaseUnreachableError):
    """A write lost to others every time that it was tried."""


class DatabaseNotReadyError(PgchromaError):
    """PostgreSQL answers, but schema, extension or version are not as needed."""

    exit_code = ExitCode.DATABASE_NOT_READY


class SourceError(PgchromaError):
    """The source is missing, damaged or of an unknown layout."""

    exit_code = ExitCode.SOURCE_UNREADABLE


class SourceChangedError(PgchromaError):
    """The source changed while, or since, it was copied."""

    exit_code = ExitCode.SOURCE_CHANGED


class VerificationError(PgchromaError):
    """A verification found a difference, or a critical check failed."""

    exit_code = ExitCode.VERIFICATION_FAILED


class RefusedError(PgchromaError):
    """A confirmation or a precondition is missing; nothing was changed."""

    exit_code = ExitCode.REFUSED


class InterruptedMigrationError(PgchromaError):
    """The work stopped half-way and can be resumed."""

    exit_code = ExitCode.INTERRUPTED


class StoreError(PgchromaError):
    """Base of what the store refuses; the server maps each subclass to a status code."""


class InvalidArgumentError(StoreError):
    """A value, name, filter or batch that the contract does not allow."""


class InvalidDimensionError(StoreError):
    """An embedding's dimension differs from its batch's or its collection's."""


class NotFoundError(StoreError):
    """A tenant, database or collection that does not exist."""

    exit_code = ExitCode.USAGE


class AlreadyExistsError(StoreError):
    """A tenant, database or collection of that name exists already."""
