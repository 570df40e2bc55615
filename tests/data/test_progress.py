"""Where stderr is no terminal, progress is a line now and then, with rate and time left."""

import pytest
from rich.progress import Progress

from lowbit_vit.data import progress


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    with progress.progress_bar("train something", 6, "images") as bar:
        for _ in range(3):
            bar.advance(2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("train something 2/6 images")
    assert lines[1].startswith("train something 4/6 images")
    assert all(line.endswith("left") for line in lines[:2])
    assert "6/6 images" in lines[-1]


def test_a_short_run_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress_bar("decode", 2, "images") as bar:
        bar.advance(2)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_bar_says_what_changes_beside_its_title(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress_bar("train", 2, "images") as bar:
        bar.advance()
        bar.say("loss 1.5")
        bar.advance()
        bar.say("loss 0.7")
    assert "train, loss 0.7" in capsys.readouterr().err


def test_a_bar_claims_no_rate_of_its_first_second(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress_bar("check", 9000, "images") as bar:
        for _ in range(9):
            bar.advance(1000)
    shown = capsys.readouterr().err
    assert "9,000/9,000 images" in shown
    assert "images/s" not in shown


def test_the_rate_of_a_finished_task_is_the_mean_since_its_start() -> None:
    clock = [0.0]
    with Progress(get_time=lambda: clock[-1], disable=True) as shown:
        task = shown.add_task("decode", total=300)
        for now in (10.0, 10.001, 10.002):
            clock.append(now)
            shown.advance(task, 100)
        assert str(progress.AmountColumn("images").render(shown.tasks[0])) == "300/300 images, 30.0 images/s"
