"""The pages' way to the database: one connection for each rerun, and what is made of all points, cached.

The caches are keyed by the database's data version, so a page that changes nothing reads nothing again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pandas as pd
import streamlit as st

from store import Store, open_store
from ui import frontier, scaling_lines
from ui.frontier import Choice, Selection
from ui.frontier_chart import frontier_figure
from ui.scaling_chart import scaling_figure
from ui.scaling_lines import Grown, Selected
from ui.scaling_view import ScalingView
from ui.view import View


@contextmanager
def store() -> Iterator[Store]:
    """The database, open for the length of a block. Raises StoreError where it cannot be opened."""
    with open_store() as opened:
        yield opened


def points(opened: Store, view: View) -> tuple[pd.DataFrame, Choice]:
    """All points on the view's two measures, and what they can be filtered by. Not to be changed by the caller."""
    return _points(opened.path, opened.data_version(), view.x, view.y, opened)


def selection(opened: Store, view: View) -> Selection:
    """The points that pass the view's filters, and their frontier. Not to be changed by the caller."""
    plain = replace(view, run=None, box=None, log_x=None, log_y=None)
    return _selection(opened.path, opened.data_version(), plain, opened)


def figure(opened: Store, view: View) -> str:
    """The frontier chart of the view."""
    return _figure(opened.path, opened.data_version(), view, opened)


def scaling_runs(opened: Store) -> tuple[pd.DataFrame, Choice]:
    """All runs that can lie on a scaling line, and what they can be filtered by. Not to be changed by the caller."""
    return _scaling_runs(opened.path, opened.data_version(), opened)


def scaling(opened: Store, view: ScalingView) -> tuple[Selected, str]:
    """The lines of the view and their chart."""
    return _scaling(opened.path, opened.data_version(), replace(view, run=None), opened)


@st.cache_resource(max_entries=2, show_spinner=False)
def _scaling_runs(path: str, version: int, _store: Store) -> tuple[pd.DataFrame, Choice]:
    return scaling_lines.load(_store)


@st.cache_resource(max_entries=8, show_spinner=False)
def _scaling(path: str, version: int, view: ScalingView, _store: Store) -> tuple[Selected, str]:
    frame, offered = _scaling_runs(path, version, _store)
    selected = scaling_lines.select(frame, view, offered)
    wanted = [line.source for line in scaling_lines.wants_answers(selected, view.x) if line.source]
    grown = {run.run_id: _grown(path, run.run_id, run.strategy.name, _store) for run in wanted}
    shown, limits = scaling_lines.with_points(selected, view.x, grown, view.limit)
    return shown, scaling_figure(shown.lines, view.x, limits, view.shows_paper)


# The answers of a finished run never change, so other runs that finish leave this alone.
@st.cache_resource(max_entries=64, show_spinner="Reading the answers of a run")
def _grown(path: str, run_id: str, strategy: str, _store: Store) -> Grown:
    return scaling_lines.grow(_store, run_id, strategy)


@st.cache_resource(max_entries=4, show_spinner=False)
def _points(path: str, version: int, x: str, y: str, _store: Store) -> tuple[pd.DataFrame, Choice]:
    frame = frontier.load(_store, x, y)
    return frame, frontier.choices(frame)


@st.cache_resource(max_entries=8, show_spinner=False)
def _selection(path: str, version: int, view: View, _store: Store) -> Selection:
    frame, offered = _points(path, version, view.x, view.y, _store)
    return frontier.select(frame, view, offered)


@st.cache_resource(max_entries=8, show_spinner=False)
def _figure(path: str, version: int, view: View, _store: Store) -> str:
    shown = selection(_store, view)
    return frontier_figure(frontier.picture(shown, view, _store.runs.hardware(), frontier.find(shown, view.run)))
