"""Data files of users: every way in which they can be wrong gets a sentence that names the line."""

import errno
import json
import os

import pytest

from spec.errors import InputError, SpecError
from spec.run_spec import TaskSpec
from tasks import files, gsm8k
from tasks.registry import check_task, load_task

GOOD = '{"question": "How many legs has a cat?", "answer": 4}'


def write(tmp_path, *lines, name="data.jsonl", prefix=b""):
    path = tmp_path / name
    data = [line if isinstance(line, bytes) else line.encode() for line in lines]
    path.write_bytes(prefix + b"\n".join(data) + b"\n")
    return path


def load(path, **changes):
    return load_task(TaskSpec(f"jsonl:{path}", **changes))


def test_all_fields(tmp_path):
    path = write(tmp_path, '{"question": "Q?", "answer": 1.5, "level": 3, "id": 7}', "", GOOD)
    first, second = load(path).problems()
    assert (first.id, first.question, first.answer, first.level) == ("7", "Q?", "1.5", 3)
    assert (second.answer, second.level) == ("4", None)


def test_ids_follow_the_question_and_not_its_place(tmp_path):
    other = '{"question": "Other?", "answer": 1}'
    a = [p.id for p in load(write(tmp_path, GOOD, other)).problems()]
    b = [p.id for p in load(write(tmp_path, other, GOOD, name="b.jsonl")).problems()]
    assert a == b[::-1]


def test_the_same_question_twice_gets_two_ids(tmp_path):
    assert len({p.id for p in load(write(tmp_path, GOOD, GOOD, GOOD)).problems()}) == 3


def test_byte_order_mark_windows_lines_and_missing_last_newline(tmp_path):
    path = tmp_path / "w.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n" + GOOD.replace("cat", "dog").encode())
    assert len(load(path).problems()) == 2


BAD = {
    "not json": ("{nonsense", "is not JSON"),
    "not an object": ("[1, 2]", "is not an object"),
    "no question": ('{"answer": 1}', "has no 'question'"),
    "near miss": ('{"Question": "x", "answer": 1}', "it has 'Question'"),
    "no answer": ('{"question": "x"}', "has no 'answer'"),
    "null answer": ('{"question": "x", "answer": null}', "has no 'answer'"),
    "empty question": ('{"question": "  ", "answer": 1}', "'question' is empty"),
    "list answer": ('{"question": "x", "answer": [1]}', "must be text or a number"),
    "true answer": ('{"question": "x", "answer": true}', "must be text or a number"),
    "bad level": ('{"question": "x", "answer": 1, "level": "hard"}', "'level' must be"),
    "bool level": ('{"question": "x", "answer": 1, "level": true}', "'level' must be"),
    "not utf-8": (b'{"question": "\xff", "answer": 1}', "is not UTF-8"),
    "nul": (b'{"question": "a\x00b", "answer": 1}', "NUL"),
    "escaped nul": ('{"question": "a\\u0000b", "answer": 1}', "NUL"),
    "lone surrogate": ('{"question": "\\ud800", "answer": 1}', "surrogate"),
    "too deep": ("[" * 100_000, "too deep"),
    "huge number": ('{"question": "x", "answer": ' + "9" * 10_000 + "}", "too long"),
    "huge line": ('{"question": "' + "x" * (files.MAX_LINE_BYTES + 1) + '", "answer": 1}', "longer than 1 MiB"),
}


@pytest.mark.parametrize(("line", "reason"), BAD.values(), ids=BAD)
def test_a_bad_line_is_named_and_skipped_only_when_asked(tmp_path, line, reason):
    path = write(tmp_path, GOOD, line, GOOD)
    with pytest.raises(InputError) as caught:
        load(path)
    message = str(caught.value)
    assert "line 2" in message
    assert reason in message
    assert "--skip-bad" in message
    assert len(message) < 1000
    task = load(path, skip_bad=True)
    assert len(task.problems()) == 2
    assert len(task.skipped) == 1
    assert task.skipped[0].startswith("line 2: ")


def test_messages_do_not_quote_the_file(tmp_path):
    with pytest.raises(InputError) as caught:
        load(write(tmp_path, "root:SECRET:0:0"))
    assert "SECRET" not in str(caught.value)


def test_many_bad_lines_are_counted_and_the_first_are_listed(tmp_path):
    with pytest.raises(InputError, match=r"has 40 bad lines \(line 2: .*; and 35 more\)"):
        load(write(tmp_path, GOOD, *["x"] * 40))


def test_skipping_leaves_an_error_when_nothing_is_left(tmp_path):
    with pytest.raises(InputError, match="no line is usable"):
        load(write(tmp_path, "x", "y"), skip_bad=True)


def test_duplicate_ids_are_bad_lines(tmp_path):
    line = '{"question": "x", "answer": 1, "id": "a"}'
    with pytest.raises(InputError, match="line 2: its 'id' was used"):
        load(write(tmp_path, line, line))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: None, "There is no file"),
        (lambda p: p.mkdir(), "is a folder"),
        (lambda p: p.write_bytes(b""), "is empty"),
        (lambda p: p.write_bytes(b"\n \n"), "is empty"),
        (lambda p: p.write_bytes(b"\xef\xbb\xbf"), "is empty"),
        (lambda p: p.write_bytes("x".encode("utf-16")), "is UTF-16"),
        (lambda p: os.mkfifo(p), "no regular file"),
        (lambda p: p.symlink_to(p), "There is no file|cannot be read"),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "perplexity", "gsm8k"])
def test_what_is_no_data_file(tmp_path, make, reason, kind):
    path = tmp_path / "odd.jsonl"
    make(path)
    if kind == "gsm8k" and reason == "is a folder":
        reason = "There is no file"  # a folder is searched for test.jsonl
    with pytest.raises(InputError, match=reason):
        load_task(TaskSpec(f"{kind}:{path}"))


@pytest.mark.parametrize("path", ["x" * 4000, "~nobody-here/x", "a\nb", "/proc/1/mem", "é" * 300])
def test_odd_paths(path):
    with pytest.raises(InputError):
        load_task(TaskSpec(f"jsonl:{path}"))


def test_too_large_a_file_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.perplexity.MAX_TEXT_BYTES", 2**20)
    path = tmp_path / "big.txt"
    path.write_bytes(b"a" * (2**20 + 1))
    with pytest.raises(InputError, match="larger than 1 MiB"):
        load_task(TaskSpec(f"perplexity:{path}"))


# --- perplexity


def test_text_is_kept_as_it_is_and_a_limit_counts_lines(tmp_path):
    path = tmp_path / "t.txt"
    path.write_bytes("\ufeffone\r\ntwö\n\nthree".encode())
    whole = load_task(TaskSpec(f"perplexity:{path}"))
    assert whole.kind == "text"
    assert whole.text() == "one\r\ntwö\n\nthree"
    part = load_task(TaskSpec(f"perplexity:{path}", limit=2))
    assert part.text() == "one\r\ntwö\n"
    assert part.content_hash() == whole.content_hash()


@pytest.mark.parametrize(("limit", "left_out"), [(None, 0), (3, 0), (2, 1)])
def test_a_text_cut_by_a_limit_says_so(tmp_path, limit, left_out):
    path = tmp_path / "t.txt"
    path.write_text("one\ntwo\nthree")
    skipped = load_task(TaskSpec(f"perplexity:{path}", limit=limit)).skipped
    assert len(skipped) == left_out
    assert all("first 2 of the text's 3 lines" in s for s in skipped)


@pytest.mark.parametrize(
    ("data", "reason"), [(b"one\ntwo\xff\n", r"not UTF-8 \(line 2\)"), (b"a\nb\nc\0d", r"NUL character in line 3")]
)
def test_text_with_a_bad_line(tmp_path, data, reason):
    path = tmp_path / "t.txt"
    path.write_bytes(data)
    with pytest.raises(InputError, match=reason):
        load_task(TaskSpec(f"perplexity:{path}"))


def test_perplexity_takes_no_template_and_no_checker(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("text")
    for changes in ({"prompt_template": "{question}"}, {"checker": "exact"}):
        with pytest.raises(SpecError, match="asks no questions"):
            load_task(TaskSpec(f"perplexity:{path}", **changes))


@pytest.mark.parametrize("changes", [{"prompt_style": "chat"}, {"shots": 2}, {"max_new_tokens": 5}, {"skip_bad": True}])
def test_perplexity_takes_nothing_that_it_would_ignore(changes):
    with pytest.raises(SpecError, match="asks no questions") as error:
        check_task(TaskSpec("perplexity:text.txt", **changes))
    assert error.value.field == f"task.{next(iter(changes))}"


def test_a_full_disk_is_not_taken_for_the_hub(monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", full)
    with pytest.raises(InputError, match=r"No space left on device.*free some space"):
        gsm8k.fetch("test")


def test_reading_a_large_file_is_linear(tmp_path):
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps({"question": f"q{i}", "answer": i}) + "\n" for i in range(20_000)))
    assert len(load(path, limit=5).problems()) == 5
