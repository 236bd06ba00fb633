"""All SQL of pgchroma: the catalog, the records and their vector indexes in PostgreSQL."""

from pgchroma.store.catalog import Database
from pgchroma.store.connection import StoreSettings
from pgchroma.store.store import Store

__all__ = ["Database", "Store", "StoreSettings"]
