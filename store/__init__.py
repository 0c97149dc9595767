"""The database: everything measured and everything queued. The only package that knows SQL."""

from store.clock import Clock
from store.errors import LeaseLost, NotFound
from store.filters import Between
from store.job_rows import Job, Lease
from store.run_rows import Run
from store.store import Store, home, open_store

__all__ = ["Between", "Clock", "Job", "Lease", "LeaseLost", "NotFound", "Run", "Store", "home", "open_store"]
