"""Reading a Chroma folder (chroma.sqlite3 and the HNSW files beside it) without chromadb and without writing to it."""
