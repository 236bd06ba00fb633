"""Every scenario."""

from conformance.differential.catalog import CATALOG
from conformance.differential.filters import FILTERS
from conformance.differential.indexes import INDEXES
from conformance.differential.model import Scenario
from conformance.differential.records import RECORDS
from conformance.differential.transport import TRANSPORT

SCENARIOS: tuple[Scenario, ...] = (*CATALOG, *INDEXES, *RECORDS, *FILTERS, TRANSPORT)
