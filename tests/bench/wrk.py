"""Load from wrk, Debian's HTTP benchmark, with bodies taken in turn from a file."""

import json
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_SCRIPT = """
local requests, turn = {}, 0
function init(args)
  for line in io.lines(args[1]) do
    requests[#requests + 1] = wrk.format("POST", args[2], {["Content-Type"] = "application/json"}, line)
  end
end
function request()
  turn = turn % #requests + 1
  return requests[turn]
end
function done(summary, latency, _)
  local e = summary.errors
  io.stderr:write(string.format(
    '{"requests": %d, "microseconds": %d, "p50": %.1f, "p95": %.1f, "p99": %.1f, "failed": %d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(95), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


class WrkError(Exception):
    """wrk is missing, failed or met an answer that was no success."""


@dataclass(frozen=True, slots=True)
class Load:
    """What wrk saw; latencies in milliseconds."""

    per_second: float
    p50: float
    p95: float
    p99: float
    requests: int


def run(
    port: int,
    path: str,
    bodies: Sequence[bytes],
    *,
    connections: int,
    seconds: float,
    until: Callable[[], object] | None = None,
) -> Load:
    """Send the bodies in turn over so many connections and return what was measured.

    Args:
        seconds: how long; with `until` at most so long.
        until: something that is done meanwhile; the load ends with it.

    Raises:
        WrkError: an answer was no success, or there was none.
    """
    program = shutil.which("wrk")
    if program is None:
        raise WrkError("wrk is not installed; `make bench` installs it, or: apt-get install wrk")
    with tempfile.TemporaryDirectory(prefix="pgchroma-wrk-") as name:
        folder = Path(name)
        (folder / "script.lua").write_text(_SCRIPT)
        (folder / "bodies").write_bytes(b"\n".join(bodies) + b"\n")
        command = [program, "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}", "--timeout", "60"]
        command += [
            "-s",
            str(folder / "script.lua"),
            f"http://127.0.0.1:{port}",
            "--",
            str(folder / "bodies"),
            path,
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            if until is not None:
                until()
                process.send_signal(signal.SIGINT)
            output, result = process.communicate(timeout=seconds + 120)
        finally:
            process.kill()
            process.wait()
    lines = [line for line in result.splitlines() if line.startswith("{")]
    if not lines:
        raise WrkError(f"wrk said nothing of its measurement: {output}{result}")
    seen = json.loads(lines[-1])
    if seen["failed"] or not seen["requests"]:
        raise WrkError(f"{path}: {seen['failed']} of {seen['requests']} requests failed: {output}")
    return Load(
        seen["requests"] / (seen["microseconds"] / 1e6),
        seen["p50"] / 1000,
        seen["p95"] / 1000,
        seen["p99"] / 1000,
        seen["requests"],
    )
