# Backups on test machines: docs/BACKUPS.md.
.PHONY: test-all
test-all: test ## Run make test and the scenario of backups and restores, with every fault
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/molecule test -s backup_restore

.PHONY: bench-backup
bench-backup: venv ## Measure backups, restores and what a dead host costs: make bench-backup MEGABYTES=1000 TABLES=4 RUNS=3 CHECK=1
	export PATH="$(CURDIR)/$(BIN):$$PATH" PGCHROMA_SECRETS="$(CURDIR)/build/secrets"; \
	molecule destroy -s backup_restore; \
	molecule converge -s backup_restore -- -e '{"pgbackrest_options": {}}'; \
	$(BIN)/python tests/bench/backup.py --megabytes $(or $(MEGABYTES),1000) --tables $(or $(TABLES),4) \
		--runs $(or $(RUNS),3) $(if $(CHECK),--check) || status=$$?; \
	molecule destroy -s backup_restore; \
	exit $${status:-0}
