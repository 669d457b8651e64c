"""How a launcher says what went wrong."""

from __future__ import annotations

from pathlib import Path

import elastic_launcher
import pytest


@pytest.mark.parametrize(("is_all", "left"), [(True, "elastic-kernels: no Java\n"), (False, "")])
def test_a_failure_is_left_in_the_pods_status_unless_the_log_says_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], is_all: bool, left: str
) -> None:
    last_words = tmp_path / "termination-log"
    last_words.touch()
    monkeypatch.setattr(elastic_launcher, "_LAST_WORDS", str(last_words))
    with pytest.raises(SystemExit, match="69"):
        elastic_launcher.fail("no Java", elastic_launcher.NO_KERNEL, is_all=is_all)
    assert capfd.readouterr().err == "elastic-kernels: no Java\n"
    assert last_words.read_text() == left


def test_where_there_is_no_kubelet_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elastic_launcher, "_LAST_WORDS", str(tmp_path / "termination-log"))
    with pytest.raises(SystemExit):
        elastic_launcher.fail("no Java", elastic_launcher.NO_KERNEL)
    assert list(tmp_path.iterdir()) == []
