"""Moves an application's plain SQLite tables to PostgreSQL: introspection, mapping file, load, proof."""
