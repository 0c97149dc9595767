"""Small choices that outlast a session, as JSON under a name."""

from __future__ import annotations

import json
from typing import Any

from store.clock import Clock
from store.connection import Connection
from store.values import text, to_json


class Settings:
    """``store.settings``."""

    def __init__(self, connection: Connection, clock: Clock) -> None:
        self._connection, self._clock = connection, clock

    def get(self, key: str, default: Any = None) -> Any:
        """The value under ``key``, or ``default``."""
        found = self._connection.value("SELECT value FROM settings WHERE key = ?", (text(key),))
        return default if found is None else json.loads(found)

    def set(self, key: str, value: Any) -> None:
        """Keep ``value`` (plain JSON types) under ``key``."""
        self._connection.execute(
            "INSERT INTO settings (key, value, updated) VALUES (?, ?, ?) "
            "ON CONFLICT (key) DO UPDATE SET value = excluded.value, updated = excluded.updated",
            (text(key), to_json(f"the setting {key}", value), self._clock.wall()),
        )
