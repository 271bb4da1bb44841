"""Seconds of earlier loads on disk: a courtesy that no disk can turn into a failure."""

from __future__ import annotations

from pathlib import Path

import pytest

from safelight.server.load_history import LoadHistory


def _read(folder: Path) -> LoadHistory:
    history = LoadHistory(folder)
    history.read()
    return history


def test_what_was_recorded_is_known_to_the_next_run(tmp_path: Path) -> None:
    LoadHistory(tmp_path).record("a/model", "cuda:0", 12.34567)
    assert _read(tmp_path).seconds("a/model", "cuda:0") == 12.346


def test_models_and_devices_are_kept_apart(tmp_path: Path) -> None:
    history = LoadHistory(tmp_path)
    history.record("a/model", "cuda:0", 1.0)
    history.record("a/model", "cpu", 2.0)
    history.record("a/model", "cuda:0", 3.0)
    assert history.seconds("a/model", "cuda:0") == 3.0
    assert history.seconds("a/model", "cpu") == 2.0
    assert history.seconds("b/model", "cpu") is None
    assert [path.name for path in tmp_path.iterdir()] == ["load-history.json"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"a/model on cpu": "3"}', b'{"\xff\xfe": 1}', b"[" * 100_000, b"\0" * 100]
)
def test_a_damaged_file_is_an_empty_history_and_is_replaced(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "load-history.json").write_bytes(content)
    history = _read(tmp_path)
    assert history.seconds("a/model", "cpu") is None
    history.record("a/model", "cpu", 5.0)
    assert history.seconds("a/model", "cpu") == 5.0


def test_a_data_directory_that_is_not_there_costs_nothing_but_the_eta(tmp_path: Path) -> None:
    LoadHistory(tmp_path / "nowhere").record("a/model", "cpu", 5.0)
    assert _read(tmp_path / "nowhere").seconds("a/model", "cpu") is None


def test_a_disk_that_refuses_to_write_leaves_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    LoadHistory(tmp_path).record("a/model", "cpu", 5.0)
    assert list(tmp_path.iterdir()) == []
