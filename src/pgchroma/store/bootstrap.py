"""What only a superuser can do to a new cluster, for the private clusters of `serve --embedded` and the tests.

On hosts this is the database administrator's work, done by the roles; the server never holds such rights there.
"""

import psycopg
from psycopg import sql


def create_database(superuser_url: str, name: str, *, template: str | None = None) -> None:
    """Create database `name`, as a copy of `template` if given; `superuser_url` names another database of the cluster."""
    statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
    if template is not None:
        statement += sql.SQL(" TEMPLATE {}").format(sql.Identifier(template))
    with psycopg.connect(superuser_url, autocommit=True) as connection:
        connection.execute(statement)


def drop_database(superuser_url: str, name: str) -> None:
    """Drop database `name`, ending the sessions that still use it."""
    statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
    with psycopg.connect(superuser_url, autocommit=True) as connection:
        connection.execute(statement)


def create_extension(superuser_url: str) -> None:
    """Create pgvector's extension in the database of the URL."""
    with psycopg.connect(superuser_url, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
