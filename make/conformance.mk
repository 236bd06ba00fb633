# chromadb's own tests, from the installed wheel: tests/conformance.
.PHONY: conformance
conformance: venv ## Run chromadb's own tests against the server: make conformance FILES=test_api.py SERVER=chroma
	PYTHONPATH=tests $(BIN)/python -m conformance.upstream --server $(or $(SERVER),pgchroma) $(FILES)
