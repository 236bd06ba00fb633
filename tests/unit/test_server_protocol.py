"""An answer's head and body go out in one piece, whatever else is written meanwhile."""

import asyncio
from typing import Any

from pgchroma.server.protocol import JoiningTransport

HEAD, BODY = b"HTTP/1.1 200 OK\r\n\r\n", b"{}"


class Recorder:
    """A transport that remembers what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def write(self, data: bytes) -> None:
        self.told.append(data)

    def writelines(self, pieces: tuple[bytes, ...]) -> None:
        self.told.append(pieces)

    def close(self) -> None:
        self.told.append("closed")

    def is_closing(self) -> bool:
        return False


def written(*steps: bytes | str | None) -> list[Any]:
    """Return what a transport is told: bytes are written, None is a turn of the loop, "close" closes."""

    async def run() -> list[Any]:
        recorder = Recorder()
        joining = JoiningTransport(recorder)  # type: ignore[arg-type]
        assert not joining.is_closing()
        for step in steps:
            if step is None:
                await asyncio.sleep(0)
            elif step == "close":
                joining.close()
            elif isinstance(step, bytes):
                joining.write(step)
        await asyncio.sleep(0)
        return recorder.told

    return asyncio.run(run())


def test_head_and_body_are_one_write() -> None:
    assert written(HEAD, BODY) == [(HEAD, BODY)]
    assert written(HEAD, BODY, BODY, HEAD, BODY) == [(HEAD, BODY), BODY, (HEAD, BODY)]


def test_a_head_does_not_wait_for_a_body_that_is_still_to_be_made() -> None:
    assert written(HEAD, None, BODY) == [HEAD, BODY]
    assert written(HEAD) == [HEAD]


def test_what_was_written_is_sent_before_the_end() -> None:
    assert written(HEAD, "close") == [HEAD, "closed"]
    assert written(HEAD, BODY, "close") == [(HEAD, BODY), "closed"]
