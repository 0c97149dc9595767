"""Where the final answer stands in a generated text, and when two answers are the same.

A model marks its answer in one of three ways, tried in this order: after ``####``, inside ``\\boxed{}``, after
"answer is" or "Answer:". Without a mark the rule decides: a number rule takes the last number, an exact rule the last
line, ``contains`` looks at the whole text. After "answer is" the mark ends with its sentence.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from spec.choices import Checker
from tasks.math_check import math_equal

_MARK = re.compile(r"####[ \t]*([^\n]*)")
_SAYS = re.compile(r"(?:answer is:?|answer:)[ \t]*(?=\S)", re.IGNORECASE)
# A full stop ends a sentence, but not one after an initial, an option's letter ("B. Paris") or a title.
_SENTENCE_END = re.compile(
    r"(?<=\d)[.!?]\s|(?<!\b[A-Za-z])(?<!\bMr)(?<!\bMrs)(?<!\bDr)(?<!\bSt)(?<!\bMt)(?<!\bNo)(?<!\bvs)[.!?]\s+(?![a-z])"
    r"|[.!?]\s+(?=(?:Because|Since|The|This|That|It|So|As|She|He|They|We|I)\b)"
)
# Not inside a word, a version or a date: 1.2.3 and 12/25/2020 are no numbers, 3/4 is one.
_NUMBER = re.compile(
    r"(?:(?<![\w)])-)?(?:(?<![\d./])(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?|(?<!\d)\.\d+)(?!\d|/\d|\.\d)"
)
_SPACE = re.compile(r"\s+")
_EQUALS = re.compile(r"(?<![<>!=])=(?!=)")
_NEGATED = re.compile(r"\b(?:not|never|no)\b|n't\b", re.IGNORECASE)
_DATE = re.compile(r"\d{1,4}[-/]\d{1,2}[-/]\d{1,4}")
_TEXT = re.compile(r"\\(?:text|textbf|mathrm)\{([^{}]*)\}")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_FUNCTION = re.compile(r"(?<![A-Za-z])(?:sqrt|sin|cos|tan|log|ln|exp|pi|inf|infinity|oo|mod)(?![A-Za-z])")
_FACTORS = re.compile(r"(?<=[\d+*/^=(){}-])[a-z]{2}(?![A-Za-z])|(?<![A-Za-z])[a-z]{2}(?=[\d+*/^=(){}-])")
_MATHS = re.compile(r"[\d\s\\+*/^=<>|!%$€£.,;()\[\]{}&'_∞π√°·×÷≤≥±∪∩-]*(?:[A-Za-z](?![A-Za-z])[^A-Za-z]*)*")
_UNIT = re.compile(r"(.*?[\d)}\]$%])\s*(\\text\{[^{}]*\}|[A-Za-z]{2}[A-Za-z .]*)", re.DOTALL)
MAX_ANSWER = 1000


@dataclass(frozen=True)
class Rule:
    """A checker: ``extract`` finds the answer in a text or returns None, ``equivalent(answer, reference)``."""

    name: str
    extract: Callable[[str], str | None]
    equivalent: Callable[[str, str], bool]


def marked(text: str) -> str | None:
    """The answer that the text marks as such: after ``####``, in ``\\boxed{}``, or after "answer is"."""
    if found := _MARK.search(text):
        return found.group(1).strip() or None
    if (boxed := _boxed(text)) is not None:
        return boxed
    said = [m.end() for m in _SAYS.finditer(text)]
    return _first_sentence(text[said[-1] :]) if said else None


def _first_sentence(text: str) -> str | None:
    line = text.split("\n", 1)[0]
    found = _SENTENCE_END.search(line)
    return line[: found.start()].strip() or None if found else line.strip() or None


def _boxed(text: str) -> str | None:
    """The content of the last ``\\boxed{...}``, braces balanced; None for an unfinished one."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len("\\boxed")
    for at in range(begin, len(text)):
        depth += (text[at] == "{") - (text[at] == "}")
        if depth == 0:
            return text[begin + 1 : at].strip() or None
    return None


def last_number(text: str) -> str | None:
    """The last number of a text, without thousands separators."""
    found = _NUMBER.findall(text)
    return found[-1].replace(",", "") if found else None


def as_number(text: str) -> Fraction | None:
    """The exact value of ``1,234.50``, ``$70``, ``3/4`` or ``50%`` (50: a percentage keeps its number), or None."""
    bare = text.replace("\\", "").strip().rstrip(".").strip("$€£ %")
    try:
        return Fraction(bare.replace(",", "")) if len(bare) <= MAX_ANSWER and _NUMBER.fullmatch(bare) else None
    except (ValueError, ZeroDivisionError):
        return None


def normalise(text: str) -> str:
    """White space made single, outer quotes and a final full stop dropped."""
    return _SPACE.sub(" ", text).strip().removesuffix(".").strip("\"'` ")


def extract_number(text: str) -> str | None:
    """The number in the marked answer; the last number of the text where nothing is marked."""
    mark = marked(text)
    if mark is None:
        return last_number(text)
    return stated_number(mark)


def stated_number(text: str) -> str | None:
    """The number that an answer in words states: the result of ``3/4 of 8 = 6``, else the first number."""
    *_, result = _EQUALS.split(text)
    found = _NUMBER.findall(result)
    if result is text or len(found) != 1:
        found = _NUMBER.findall(text)
    return found[0].replace(",", "") if found else None


def extract_line(text: str) -> str | None:
    """The marked answer, else the last line with something on it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (marked(text) or (lines[-1] if lines else None) or "")[:MAX_ANSWER] or None


def extract_math(text: str) -> str | None:
    """The marked answer, else the last number, else the last line."""
    return (marked(text) or last_number(text) or extract_line(text) or "")[:MAX_ANSWER] or None


def same_text(a: str, b: str) -> bool:
    """Equal but for white space, outer quotes and a final full stop."""
    return normalise(a) == normalise(b)


def same_number(a: str, b: str) -> bool:
    """Equal as exact numbers; what is no number equals nothing."""
    x, y = as_number(a), as_number(b)
    return x is not None and x == y


def looks_like_math(text: str) -> bool:
    """Digits, operators, LaTeX, single letters and names of functions; no words and no dates."""
    bare = _FACTORS.sub("x", _FUNCTION.sub("1", _COMMAND.sub(" ", text)))
    return _DATE.fullmatch(text.strip()) is None and _MATHS.fullmatch(bare) is not None


def same_math(a: str, b: str) -> bool:
    """Equal as text, as numbers, or as mathematical expressions (math-verify, which reads words as letters).

    Where ``b`` is a number, an answer in words or an equation counts by the number it states.
    """
    if same_text(_TEXT.sub(r"\1", a), _TEXT.sub(r"\1", b)):
        return True
    (a, unit_a), (b, unit_b) = _without_unit(a), _without_unit(b)
    if unit_a and unit_b and unit_a != unit_b:
        return False
    if as_number(b) is not None:
        if as_number(a) is not None:
            return same_number(a, b)
        *before, result = _EQUALS.split(a)
        if before and as_number(result) is not None:
            return same_number(result, b)
        if not looks_like_math(a) and "\\" not in a:
            return _states(a, b)
    return looks_like_math(a) and looks_like_math(b) and math_equal(a, b)


def _states(text: str, number: str) -> bool:
    """Whether a text in words states this number and does not deny it."""
    stated, first = stated_number(text), _NUMBER.search(text)
    if stated is None or first is None or _DATE.search(text) or _NEGATED.search(text[: first.start()]):
        return False
    return same_number(stated, number)


def _without_unit(text: str) -> tuple[str, str]:
    """``18 dollars`` as ``18`` and ``dollars``; a text that is not mathematics and a unit stays whole."""
    found = _UNIT.fullmatch(text.strip().rstrip("."))
    if found is None or not looks_like_math(found[1]) or looks_like_math(text):
        return text, ""
    return found[1], found[2].removeprefix("\\text{").rstrip("}").strip().casefold()


def contains(a: str, b: str) -> bool:
    """Whether the reference ``b`` stands in ``a`` as whole words, case ignored."""
    answer, reference = normalise(a).casefold(), normalise(b).casefold()
    if not reference:
        return False
    return re.search(rf"(?<!\w){re.escape(reference)}(?!\w)", answer) is not None


RULES: dict[Checker, Rule] = {
    Checker.EXACT: Rule("exact", extract_line, same_text),
    Checker.NUMBER: Rule("number", extract_number, same_number),
    Checker.MATH: Rule("math", extract_math, same_math),
    Checker.CONTAINS: Rule("contains", lambda text: text.strip() or None, contains),
}
