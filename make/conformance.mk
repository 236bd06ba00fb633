# chromadb's own tests, from the installed wheel: tests/conformance.
.PHONY: conformance
conformance: venv ## Run chromadb's own tests against the server: make conformance FILES=test_api.py SERVER=chroma
	PYTHONPATH=tests $(BIN)/python -m conformance.upstream --server $(or $(SERVER),pgchroma) $(FILES)

.PHONY: conformance-diff
conformance-diff: venv ## Play a table of raw requests against `chroma run` and the server: make conformance-diff NAMES=where
	PYTHONPATH=tests $(BIN)/python -m conformance.differential.run $(NAMES)
