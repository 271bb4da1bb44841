"""The errors: one stable code each, a status that fits, and a tree in the docstring that is the real one."""

from __future__ import annotations

import re

import pytest

from safelight import errors
from safelight.errors import InternalError, OutOfMemory, SafelightError, error_from_code


def _kinds(kind: type[SafelightError] = SafelightError) -> list[type[SafelightError]]:
    return [kind, *(found for child in kind.__subclasses__() for found in _kinds(child))]


OWN = [kind for kind in _kinds() if kind.__module__ == errors.__name__]


def test_every_error_has_a_code_of_its_own() -> None:
    codes = [kind.code for kind in OWN]
    assert len(codes) == len(set(codes))
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in codes)


@pytest.mark.parametrize("kind", OWN, ids=lambda kind: kind.__name__)
def test_status_type_and_words_of_an_error_fit_together(kind: type[SafelightError]) -> None:
    assert 400 <= kind.status < 600
    if kind.status == 429:
        assert kind.error_type == "rate_limit_error"
    else:
        assert kind.error_type == ("invalid_request_error" if kind.status < 500 else "server_error")
    assert kind.title[0].isupper() and not kind.title.endswith(".")
    assert kind.__doc__
    if kind.should_retry is not None:
        assert kind.status >= 429, "below 429 no client asks again anyway"


def test_the_tree_in_the_docstring_is_the_real_one() -> None:
    parents: dict[str, str] = {}
    path: list[str] = []
    statuses: dict[str, str] = {}
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"([│├└─ ]*)([A-Z][A-Za-z]+)(?: +([45]\d\d))?(?:  |$)", line):
            depth = len(found[1]) // 4
            parents[found[2]] = path[depth - 1] if depth else ""
            path[depth:] = [found[2]]
            statuses[found[2]] = found[3] or statuses.get(parents[found[2]], "")
    assert parents == {kind.__name__: "" if kind is SafelightError else kind.__bases__[0].__name__ for kind in OWN}
    for kind in OWN:
        assert statuses[kind.__name__] in ("", str(kind.status)), kind.__name__


@pytest.mark.parametrize("kind", OWN, ids=lambda kind: kind.__name__)
def test_an_error_comes_back_from_its_code(kind: type[SafelightError]) -> None:
    error = error_from_code(kind.code, "a sentence")
    assert type(error) is kind
    assert (error.message, str(error), error.param) == ("a sentence", "a sentence", None)


def test_an_unknown_code_is_an_internal_error() -> None:
    assert type(error_from_code("out_of_cheese", "no cheese")) is InternalError


def test_what_will_fail_again_says_so() -> None:
    assert OutOfMemory.should_retry is False
