"""Opening the two sides of a migration for as long as a command lasts."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from pgchroma.migrate import places
from pgchroma.migrate.model import Sink, Source
from pgchroma.migrate.places import Options, Place


@contextlib.asynccontextmanager
async def opened_sink(
    place: Place, options: Options, receipt_path: Path, base: Path | None = None
) -> AsyncIterator[Sink]:
    """Open the target, and close it."""
    sink = await places.open_sink(place, options, receipt_path, base=base)
    try:
        yield sink
    finally:
        await sink.close()


@contextlib.asynccontextmanager
async def both(
    source: Place, target: Place, options: Options, receipt_path: Path
) -> AsyncIterator[tuple[Source, Callable[[], Awaitable[Sink]]]]:
    """Open the source, and the sink meanwhile where that is a database; another one only when it is asked for."""
    async with contextlib.AsyncExitStack() as stack:

        async def connected() -> Sink:
            return await stack.enter_async_context(opened_sink(target, options, receipt_path))

        if not target.is_database:
            yield stack.enter_context(places.open_source(source, options)), connected
            return
        connecting = asyncio.ensure_future(connected())

        async def given_up() -> None:
            connecting.cancel()
            await asyncio.gather(connecting, return_exceptions=True)

        stack.push_async_callback(given_up)
        opening = asyncio.ensure_future(
            asyncio.to_thread(stack.enter_context, places.open_source(source, options))
        )
        try:
            opened = await asyncio.shield(opening)
        except asyncio.CancelledError:
            # What a thread opens has to be closed, so it has to be there first.
            await asyncio.wait([opening])
            raise
        yield opened, lambda: connecting
