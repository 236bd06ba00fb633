# Speed and memory of the migrator, as ratios: docs/MIGRATION.md. Best on a machine that does nothing else.
.PHONY: bench-migrate
bench-migrate: venv ## Measure the migrator against raw COPY, the usual loop and chroma's ingestion: make bench-migrate ROWS=20000 CHECK=1
	PYTHONPATH=tests $(BIN)/python -m bench.migrate $(if $(ROWS),--rows $(ROWS)) $(if $(CHECK),--check)

.PHONY: kill-migrate
kill-migrate: venv ## Kill migrations with -9 at random moments, resume, count; beside a control without checkpoints: make kill-migrate TIMES=10
	PYTHONPATH=tests $(BIN)/python -m faults.killed_migrations $(if $(TIMES),--times $(TIMES))
