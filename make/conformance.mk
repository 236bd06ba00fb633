# chromadb's own tests, from the installed wheel, and round trips of other clients: tests/conformance.
.PHONY: conformance
conformance: venv ## Run chromadb's own tests against the server: make conformance FILES=test_api.py SERVER=chroma PART=node|beyond
	PYTHONPATH=tests $(BIN)/python -m conformance.upstream --server $(or $(SERVER),pgchroma) $(addprefix --part=,$(PART)) $(FILES)

.PHONY: conformance-diff
conformance-diff: venv ## Play a table of raw requests against `chroma run` and the server: make conformance-diff NAMES=where
	PYTHONPATH=tests $(BIN)/python -m conformance.differential.run $(NAMES)

# Node.js may come from elsewhere than Debian; then npm is a part of it and no package of its own.
.PHONY: npm-client
npm-client: venv
	command -v npm >/dev/null || scripts/install-system-packages nodejs npm
	PYTHONPATH=tests $(BIN)/python -m conformance.npm_client

unit: npm-client

.PHONY: clients
clients: npm-client ## Run a round trip of each other client: npm chromadb, langchain, llama-index, asynchronous, cloud
	$(BIN)/pytest tests/conformance/test_real_clients.py

.PHONY: model
model: venv ## Compare the server with a model in memory over many random sequences: make model EXAMPLES=2000
	PGCHROMA_MODEL_EXAMPLES=$(or $(EXAMPLES),2000) $(BIN)/pytest tests/integration/test_http_model.py tests/integration/test_http_indexed_model.py
