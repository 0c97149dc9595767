"""Moments as the reader's clock shows them: in the browser's time zone, or in this machine's where it names none."""

from __future__ import annotations

from datetime import datetime, tzinfo
from zoneinfo import ZoneInfo

import streamlit as st

COLUMN_FORMAT = "YYYY-MM-DD HH:mm"


def zone() -> tzinfo | None:
    """The reader's time zone; None for this machine's."""
    try:
        return ZoneInfo(st.context.timezone or "")
    except (KeyError, ValueError, OSError):  # none, or one that this machine does not know
        return None


def moment(seconds: float) -> datetime:
    """Seconds since 1970 as local date and time, without a zone: tables show it as it is."""
    return datetime.fromtimestamp(seconds, zone()).replace(tzinfo=None)


def text(seconds: float) -> str:
    """``2026-11-21 14:05``."""
    return moment(seconds).strftime("%Y-%m-%d %H:%M")
