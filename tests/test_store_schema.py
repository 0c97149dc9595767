"""docs/schema.md says what the live schema is, no more and no less."""

from store.schema import MEANINGS, render
from tests.fake_store import ROOT, new_store


def test_every_table_and_column_has_a_meaning(tmp_path):
    with new_store(tmp_path) as store:
        rows = store.connection.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        )
        live = {name: {row[1] for row in store.connection.execute(f"PRAGMA table_info({name})")} for (name,) in rows}
    assert live == {table: set(meanings) for table, (_, meanings) in MEANINGS.items()}


def test_the_page_is_up_to_date(tmp_path):
    with new_store(tmp_path) as store:
        page = render(store.connection)
    assert (ROOT / "docs" / "schema.md").read_text() == page, "run `python -m store.schema > docs/schema.md`"
