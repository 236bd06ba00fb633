"""What the tests share: an embedded PostgreSQL, server processes, waiting for a condition."""
