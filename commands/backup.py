"""``backup``: a copy of the database, made while others use it."""

from __future__ import annotations

from typing import Annotated

import typer

from commands.database import open_database
from commands.options import Db, Json
from commands.output import print_json, say

Target = Annotated[
    str | None,
    typer.Argument(metavar="[PATH]", help="File to write; without it, one in `backups` beside the database."),
]


def backup(path: Target = None, db: Db = None, json: Json = False) -> None:
    """Copy the whole database into one file and check the copy; runs may go on meanwhile."""
    with open_database(db) as store:
        copy = store.backup(path)
    if json:
        print_json({"path": str(copy), "bytes": copy.stat().st_size})
    else:
        say(f"{copy}: a checked copy of the database.")
