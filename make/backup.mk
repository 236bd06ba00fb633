# Backups on test machines: docs/BACKUPS.md.
.PHONY: bench-backup
bench-backup: venv ## Measure backups, restores and what a dead host costs: make bench-backup MEGABYTES=1000
	export PATH="$(CURDIR)/$(BIN):$$PATH"; \
	molecule destroy -s backup_restore; \
	molecule converge -s backup_restore; \
	PGCHROMA_SECRETS=$$HOME/.ansible/tmp/molecule.bench/secrets $(BIN)/python tests/bench/backup.py --megabytes $(or $(MEGABYTES),1000); \
	molecule destroy -s backup_restore
