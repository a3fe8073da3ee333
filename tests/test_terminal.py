"""report/terminal.py records what a script printed, and draws what the terminal showed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import ImageChops

from experiment.records import ROOT
from report import terminal


def run_main(*arguments: str, folder: Path) -> subprocess.CompletedProcess:
    """terminal.main in a process of its own, whose terminal may be taken over."""
    code = "import sys; from pathlib import Path; from report import terminal; "
    code += "sys.exit(terminal.main(sys.argv[2:], Path(sys.argv[1])))"
    command = [sys.executable, "-c", code, folder, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True
    )


@pytest.mark.slow
def test_a_run_is_recorded_as_it_was_printed(tmp_path):
    (tmp_path / "hello.py").write_text("import sys; print(*sys.argv[1:], sys.stdout.isatty())")
    assert run_main("record", "hello.py", "--epochs", "1", folder=tmp_path).returncode == 0
    shown = b"$ python hello.py --epochs 1\r\n--epochs 1 True\r\n"
    assert (tmp_path / "hello.log").read_bytes() == shown


@pytest.mark.slow
def test_a_run_that_fails_is_not_recorded_and_its_status_is_passed_on(tmp_path):
    (tmp_path / "fails.py").write_text("raise SystemExit(7)")
    assert run_main("record", "fails.py", folder=tmp_path).returncode == 7
    assert list(tmp_path.iterdir()) == [tmp_path / "fails.py"]


def test_drawing_shows_the_end_of_a_line_that_was_written_over():
    first, second = terminal.draw(b"one\rtwo\r\n"), terminal.draw(b"two")
    assert ImageChops.difference(first, second).getbbox() is None
    other = terminal.draw(b"one")
    assert ImageChops.difference(other, second).getbbox() is not None


def test_drawing_shows_the_lines_that_were_scrolled_away_too():
    def height(lines: int) -> int:
        return terminal.draw(b"\r\n".join([b"line"] * lines)).height

    line = height(2) - height(1)
    assert line > 0 and height(3 * terminal.LINES) == height(1) + (3 * terminal.LINES - 1) * line


def test_all_recordings_are_drawn(tmp_path):
    for name, printed in (("a", b"text"), ("b", b"")):
        (tmp_path / f"{name}.log").write_bytes(printed)
    assert terminal.main(["draw"], tmp_path) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.log", "a.png", "b.log", "b.png"]


def test_nothing_to_draw_is_an_error_of_one_line(tmp_path, capsys):
    assert terminal.main(["draw"], tmp_path) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: There is no recording") and error.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["record"], ["paint"], ["draw", "more"]])
def test_bad_usage_ends_with_status_2(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        terminal.main(arguments, tmp_path)
    assert ended.value.code == 2 and "error: " in capsys.readouterr().err
