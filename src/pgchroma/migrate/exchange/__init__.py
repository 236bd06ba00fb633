"""Exchange files: JSON lines and Parquet, see docs/EXCHANGE_FORMAT.md."""
