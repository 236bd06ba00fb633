"""The one table of exit codes; every command of the project uses these and no others."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What a command's exit status means to the person, cron job or playbook that ran it."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    CONFIGURATION = 3
    DATABASE_UNREACHABLE = 4
    DATABASE_NOT_READY = 5
    SOURCE_UNREADABLE = 6
    SOURCE_CHANGED = 7
    VERIFICATION_FAILED = 8
    REFUSED = 9
    INTERRUPTED = 10
    # What a shell shows for a program that Ctrl-C ended.
    STOPPED = 130


MEANINGS: dict[ExitCode, str] = {
    ExitCode.OK: "done, and everything that was checked holds",
    ExitCode.UNEXPECTED: "an error that pgchroma did not foresee; please report it with the message",
    ExitCode.USAGE: "wrong options or arguments",
    ExitCode.CONFIGURATION: "a setting is missing, contradictory or out of range",
    ExitCode.DATABASE_UNREACHABLE: "PostgreSQL does not answer or refuses the login",
    ExitCode.DATABASE_NOT_READY: "PostgreSQL answers, but the schema, the extension or its version is not as needed",
    ExitCode.SOURCE_UNREADABLE: "the source is missing, damaged or of an unknown layout",
    ExitCode.SOURCE_CHANGED: "the source changed while, or since, it was copied",
    ExitCode.VERIFICATION_FAILED: "a verification found a difference, or a critical check failed",
    ExitCode.REFUSED: "a confirmation or a precondition is missing; nothing was changed",
    ExitCode.INTERRUPTED: "stopped half-way; run `pgchroma migrate resume`",
    ExitCode.STOPPED: "ended by Ctrl-C; a dump or a load goes on by the same command",
}


class NagiosCode(IntEnum):
    """What `--format nagios` ends with instead, because monitoring plugins have a convention of their own."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


NAGIOS_MEANINGS: dict[NagiosCode, str] = {
    NagiosCode.OK: "everything that was checked holds",
    NagiosCode.WARNING: "a check failed that can wait until the morning",
    NagiosCode.CRITICAL: "a check failed that cannot",
    NagiosCode.UNKNOWN: "nothing could be found out: wrong options or settings",
}
