"""The SQLite database of an application such as people have: users, sessions, messages, insights, summaries."""

import contextlib
import json
import random
import sqlite3
from pathlib import Path

SCHEMA = """
CREATE TABLE users (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    email VARCHAR(120) NOT NULL UNIQUE,
    display_name TEXT,
    is_active BOOLEAN NOT NULL DEFAULT 1,
    preferences JSON DEFAULT '{}',
    balance DECIMAL(10,2) DEFAULT 0.00,
    avatar BLOB,
    created_at DATETIME DEFAULT CURRENT_TIMESTAMP
);
CREATE TABLE sessions (
    id TEXT PRIMARY KEY,
    user_id INTEGER NOT NULL REFERENCES users(id) ON DELETE CASCADE,
    title TEXT DEFAULT 'untitled',
    started_at INTEGER,
    context JSON
);
CREATE TABLE messages (
    id INTEGER PRIMARY KEY,
    session_id TEXT NOT NULL REFERENCES sessions(id) ON DELETE CASCADE,
    "Order" INTEGER NOT NULL,
    role VARCHAR(20) NOT NULL,
    content TEXT NOT NULL,
    metadata JSON,
    score REAL,
    sent_at TIMESTAMP,
    UNIQUE (session_id, "Order")
);
CREATE INDEX idx_messages_role ON messages (role);
CREATE TABLE insights (
    user_id INTEGER NOT NULL REFERENCES users,
    key TEXT NOT NULL,
    value,
    confidence REAL DEFAULT 0.5,
    PRIMARY KEY (user_id, key)
) WITHOUT ROWID;
CREATE TABLE summaries (
    session_id TEXT REFERENCES sessions(id) ON DELETE SET NULL,
    body TEXT,
    keywords JSON,
    day DATE
);
CREATE VIEW active_users AS SELECT * FROM users WHERE is_active;
"""

_WORDS = [
    "harbour", "ledger", "lantern", "näher", "mañana", "東京", "quiet", "tab\there", "back\\slash", "line\nbreak", "rain",
    "index", "copper", "letter", "window", "ö", "end\rhere", "\\N", "orbit", "🙂",
]  # fmt: skip


def make(path: Path, *, messages: int, seed: int = 1) -> Path:
    """Write the database with that many messages, and others in proportion; the same for the same seed."""
    chance = random.Random(seed)
    users, sessions = max(3, messages // 200), max(5, messages // 20)

    def words(count: int) -> str:
        return " ".join(chance.choices(_WORDS, k=count))

    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(SCHEMA)
        connection.executemany(
            "INSERT INTO users (id, email, display_name, is_active, preferences, balance, avatar, created_at) "
            "VALUES (?,?,?,?,?,?,?,?)",
            [
                (
                    n + 1,
                    f"user{n}@example.org",
                    None if n % 7 == 0 else words(2),
                    n % 3 != 0,
                    json.dumps(
                        {"theme": words(1), "limits": [n, n / 8, True, None], "nested": {"a": {"b": "ü"}}}
                    ),
                    round(n * 1.25, 2),
                    None if n % 2 else chance.randbytes(40),
                    f"2024-0{1 + n % 9}-11 09:{n % 60:02d}:07",
                )
                for n in range(users)
            ],
        )
        connection.executemany(
            "INSERT INTO sessions VALUES (?,?,?,?,?)",
            [
                (
                    f"s-{n:08d}",
                    1 + n % users,
                    words(3),
                    1_700_000_000 + n,
                    None if n % 4 else json.dumps([n, words(1)]),
                )
                for n in range(sessions)
            ],
        )
        connection.executemany(
            "INSERT INTO messages VALUES (?,?,?,?,?,?,?,?)",
            (
                (
                    n + 10,
                    f"s-{n % sessions:08d}",
                    n // sessions,
                    ("user", "assistant", "system")[n % 3],
                    words(25),
                    json.dumps({"tokens": n % 900, "model": "m", "tags": [words(1)]}) if n % 5 else None,
                    chance.gauss(0, 1) if n % 6 else None,
                    f"2025-03-{1 + n % 28:02d}T{n % 24:02d}:15:30.{n % 1000:03d}",
                )
                for n in range(messages)
            ),
        )
        connection.executemany(
            "INSERT INTO insights VALUES (?,?,?,?)",
            [
                (1 + n % users, f"k{n // users}", (n, n / 4, words(2), None, 2**62)[n % 5], chance.random())
                for n in range(users * 4)
            ],
        )
        connection.executemany(
            "INSERT INTO summaries VALUES (?,?,?,?)",
            [
                (f"s-{n:08d}", words(30), json.dumps([words(1), words(1)]), f"2025-02-{1 + n % 28:02d}")
                for n in range(sessions)
                for _ in range(1 + (n % 10 == 0))
            ],
        )
        # A number that was handed out once and must not be again.
        connection.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'users'", [users + 100])
    return path
