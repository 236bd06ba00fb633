# Speed against `chroma run` of the installed chromadb: docs/BENCHMARKS.md. Best on a machine that does nothing else.
# DATA= a folder with other data, REPEAT= repetitions, ONLY="query mixed" some topics, CHECK=1 to fail where a target is missed,
# DOCS=1 to write docs/BENCHMARKS.md.
.PHONY: bench
bench: venv ## Measure speed against chroma run: make bench DATA=folder REPEAT=3 ONLY="query mixed" CHECK=1
	scripts/install-system-packages wrk
	PYTHONPATH=tests $(BIN)/python -m bench.main $(if $(DATA),--data $(DATA)) $(if $(REPEAT),--repeat $(REPEAT)) \
		$(addprefix --only ,$(ONLY)) $(if $(CHECK),--check) $(if $(DOCS),--docs docs)

.PHONY: bench-growth
bench-growth: venv ## Measure growth with the collection into docs/BENCHMARKS.md: make bench-growth DATA=folder ROWS="5000 20000 100000"
	scripts/install-system-packages wrk
	PYTHONPATH=tests $(BIN)/python -m bench.growth $(if $(DATA),--data $(DATA)) $(addprefix --rows ,$(ROWS))
