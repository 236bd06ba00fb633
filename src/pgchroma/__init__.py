"""Chroma's HTTP API over PostgreSQL and pgvector."""

__version__ = "0.1.0"
