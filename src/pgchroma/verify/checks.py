"""What a check is: something with a stable id that holds or does not, and what to do when it does not."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

Severity: TypeAlias = Literal["critical", "warning"]
Status: TypeAlias = Literal["ok", "failed"]


@dataclass(frozen=True, slots=True)
class Check:
    """The outcome of one check.

    Attributes:
        id: stable, for programs and runbooks.
        severity: a failed `critical` check makes the command fail, a failed `warning` does not.
        detail: what was seen.
        hint: what to do; empty when there is nothing to do.
    """

    id: str
    severity: Severity
    status: Status
    detail: str
    hint: str = ""

    @property
    def is_critical_failure(self) -> bool:
        """Whether the command must fail because of it."""
        return self.severity == "critical" and self.status == "failed"


def check(ident: str, severity: Severity, holds: bool, detail: str, hint: str = "") -> Check:
    """Return the outcome; the hint is kept only where it is needed."""
    return Check(ident, severity, "ok" if holds else "failed", detail, "" if holds else hint)


def as_json(checks: Sequence[Check]) -> dict[str, Any]:
    """Return a list of outcomes as a JSON object."""
    failed = [item for item in checks if item.status == "failed"]
    critical = [item for item in failed if item.severity == "critical"]
    return {
        "result": "failed" if critical else "ok",
        "failed": len(critical),
        "warnings": len(failed) - len(critical),
        "checks": [asdict(item) for item in checks],
    }
