# Speed and memory of the migrator, as ratios: docs/MIGRATION.md. Best on a machine that does nothing else.
.PHONY: bench-migrate
bench-migrate: venv ## Measure the migrator against raw COPY, the usual loop and chroma's ingestion: make bench-migrate ROWS=20000 CHECK=1
	PYTHONPATH=tests $(BIN)/python -m bench.migrate $(if $(ROWS),--rows $(ROWS)) $(if $(CHECK),--check)
