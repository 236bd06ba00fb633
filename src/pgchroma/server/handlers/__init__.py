"""The operations of the API, by subject; each turns a request into one call of the store and its result into an answer."""

from dataclasses import dataclass

from pgchroma.server.metrics import Metrics
from pgchroma.server.read_ahead import ReadAhead
from pgchroma.server.settings import ServerSettings
from pgchroma.store import Store
from pgchroma.store.watch import Watch
from pgchroma.types import Rows


@dataclass(frozen=True, slots=True)
class Context:
    """What the handlers of one worker work with."""

    store: Store
    settings: ServerSettings
    watch: Watch
    metrics: Metrics
    read_ahead: ReadAhead[Rows]
