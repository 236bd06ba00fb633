# What indexes cost and give; both write their tables into docs/INDEXES.md.
.PHONY: recall
recall: venv ## Measure recall of filtered queries by selectivity: make recall ROWS="20000 60000" QUERIES=200
	PYTHONPATH=tests $(BIN)/python -m bench.indexes recall $(addprefix --rows ,$(ROWS)) $(if $(QUERIES),--queries $(QUERIES))

.PHONY: indexes
indexes: venv ## Measure every kind of vector index: recall, size, speed
	PYTHONPATH=tests $(BIN)/python -m bench.indexes kinds $(if $(ROWS),--rows $(ROWS))
