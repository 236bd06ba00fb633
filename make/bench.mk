# Speed against `chroma run` of the installed chromadb: docs/BENCHMARKS.md. Best on a machine that does nothing else.
# DATA= a folder with other data, REPEAT= repetitions, ONLY="query mixed" some topics, CHECK=1 to fail where a target is missed.
.PHONY: bench
bench: venv ## Measure speed against chroma run: make bench DATA=folder REPEAT=3 ONLY="query mixed" CHECK=1
	scripts/install-system-packages wrk
	PYTHONPATH=tests $(BIN)/python -m bench.main $(if $(DATA),--data $(DATA)) $(if $(REPEAT),--repeat $(REPEAT)) \
		$(addprefix --only ,$(ONLY)) $(if $(CHECK),--check)
