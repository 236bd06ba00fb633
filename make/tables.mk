# An application of the size that people have: docs/SQLITE_TABLES.md. Half a minute, so not among the tests of each change.
.PHONY: test-tables
test-tables: venv ## Move 200,000 messages and their four other tables, killed on the way, and compare every row twice
	$(BIN)/pytest tests/large
