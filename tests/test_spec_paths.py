"""Paths as a user writes them: every way in which one can be wrong is one plain sentence."""

from pathlib import Path

import pytest

from spec.errors import InputError
from spec.paths import expand, is_folder


def test_a_home_folder_is_filled_in(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand("~/x") == tmp_path / "x"
    assert expand("a/~") == Path("a/~")
    assert expand(tmp_path) == tmp_path


@pytest.mark.parametrize(("text", "words"), [("~no-such-user/x", "home folder"), ("a\0b", "NUL")])
def test_what_cannot_be_a_path_is_one_sentence(text, words):
    with pytest.raises(InputError, match=words) as error:
        expand(text)
    assert "\n" not in str(error.value)
    assert "\0" not in str(error.value)


def test_a_name_that_is_too_long_is_one_sentence(tmp_path):
    assert is_folder(tmp_path)
    assert not is_folder(tmp_path / "nothing")
    with pytest.raises(InputError, match="too long") as error:
        is_folder(Path("x" * 300))
    assert len(str(error.value)) < 200


def test_a_folder_behind_a_closed_door_is_one_sentence(monkeypatch, tmp_path):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.raises(InputError, match="Permission denied"):
        is_folder(tmp_path / "x")
