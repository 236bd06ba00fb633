"""The loop that people write to move a collection into PostgreSQL: collection.get in pages, executemany, a commit for each page.

Run by the Python that has the chromadb which wrote the folder: usual_loop.py FOLDER URL COLLECTION PAGE text|binary [MORE_PACKAGES]
`text` writes vectors as pgvector's literals and asks for ON CONFLICT DO NOTHING, as the scripts that are published do; `binary` is
the quickest form of it, with pgvector's adapter. Prints the seconds from opening the folder to the last commit.
"""

import json
import sys
import time
from typing import Any


def literal(vector: Any) -> str:
    """Return a vector as pgvector reads it."""
    return "[" + ",".join(repr(float(value)) for value in vector) + "]"


def main() -> None:
    """Move one collection."""
    folder, url, name, page_size, form, *packages = sys.argv[1:]
    sys.path += packages
    import chromadb
    import psycopg
    from chromadb.config import Settings

    insert = "INSERT INTO looped VALUES (%s, %s, %s, %s) ON CONFLICT (id) DO NOTHING"
    with psycopg.connect(url) as connection:
        connection.execute("DROP TABLE IF EXISTS looped")
        connection.execute(
            "CREATE TABLE looped (id text PRIMARY KEY, embedding vector(384), document text, metadata jsonb)"
        )
        connection.commit()
        adapted: Any = literal
        if form == "binary":
            from pgvector.psycopg import register_vector

            register_vector(connection)
            adapted, insert = (lambda vector: vector), "INSERT INTO looped VALUES (%s, %s, %s, %s)"
        started = time.monotonic()
        client: Any = chromadb.PersistentClient(folder, settings=Settings(anonymized_telemetry=False))
        collection = client.get_collection(name, embedding_function=None)
        count = collection.count()
        for offset in range(0, count, int(page_size)):
            page = collection.get(
                limit=int(page_size), offset=offset, include=["embeddings", "documents", "metadatas"]
            )
            rows = [
                (record_id, adapted(vector), document, json.dumps(metadata))
                for record_id, vector, document, metadata in zip(
                    page["ids"], page["embeddings"], page["documents"], page["metadatas"], strict=True
                )
            ]
            with connection.cursor() as cursor:
                cursor.executemany(insert, rows)
            connection.commit()
        sys.stdout.write(str(time.monotonic() - started))


if __name__ == "__main__":
    main()
