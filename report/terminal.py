"""Pictures of a terminal in which a script really ran: python report/terminal.py record | draw

``record arcface_mnist.py`` runs it in a pseudo-terminal and keeps what it printed, escape sequences
and all, in figures/terminal/; ``draw`` renders the recordings there as PNG.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

try:
    import experiment.errors  # noqa: F401, I001  first: Ctrl-C during the other imports is one line
    import matplotlib
    import pyte
    from PIL import Image, ImageDraw, ImageFont

    from experiment.errors import Problem, exit_status
    from experiment.records import ROOT, replacing, write
except ImportError as error:
    needs = "python -m pip install -r report/requirements.txt"
    sys.exit(f"error: {error.name} is not installed. Install what the report needs: {needs}")

FOLDER = ROOT / "figures" / "terminal"
COLUMNS, LINES = 96, 26
INK, BACKGROUND, GREY = "#1c1c1c", "#fafafa", "#d0d0d0"
FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSansMono.ttf"


def record(arguments: list[str], folder: Path) -> int:
    """Run ``python`` with these arguments in a pseudo-terminal of COLUMNS × LINES characters.

    What it printed goes into ``folder``, named after the script, if it ended with status 0.
    Returns its exit status.

    Raises:
        Problem: the system has no pseudo-terminals, or the file cannot be written.
    """
    try:
        import pty
    except ImportError as error:
        raise Problem("This system has no pseudo-terminals. Record on Linux or macOS.") from error
    printed = bytearray(f"$ python {shlex.join(arguments)}\r\n".encode())

    def keep(descriptor: int) -> bytes:
        read = os.read(descriptor, 1024)
        printed.extend(read)
        return read

    command = shlex.join([sys.executable, *arguments])
    sized = ["sh", "-c", f"stty cols {COLUMNS} rows {LINES}; exec {command}"]
    status = os.waitstatus_to_exitcode(pty.spawn(sized, keep))
    if status == 0:
        write(folder / f"{Path(arguments[0]).stem}.log", bytes(printed))
    return status if status >= 0 else 128 - status  # ended by a signal: as a shell reports it


def draw_all(folder: Path) -> None:
    """Draw every recording in ``folder`` as PNG beside it. Raises Problem if there is none."""
    logs = sorted(folder.glob("*.log"))
    if not logs:
        remedy = "Record a run first: python report/terminal.py record arcface_mnist.py"
        raise Problem(f"There is no recording in {folder}. {remedy}")
    for log in logs:
        picture = draw(log.read_bytes())
        with replacing(log.with_suffix(".png")) as temporary:
            picture.save(temporary)


def draw(recording: bytes, size: int = 26) -> Image.Image:
    """What the terminal showed at the end of a recording, with letters ``size`` pixels high."""
    screen = pyte.HistoryScreen(COLUMNS, LINES, history=1000)
    pyte.ByteStream(screen).feed(recording)
    scrolled = ["".join(row[x].data for x in range(COLUMNS)) for row in screen.history.top]
    lines = [line.rstrip() for line in [*scrolled, *screen.display]]
    while len(lines) > 1 and not lines[-1]:
        lines.pop()
    font = ImageFont.truetype(str(FONT), size)
    width, height, edge = font.getlength("M"), round(1.2 * size), round(0.6 * size)
    shape = round(width * max(map(len, lines))) + 2 * edge, height * len(lines) + 2 * edge
    picture = Image.new("RGB", shape, BACKGROUND)
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, 0, picture.width - 1, picture.height - 1), outline=GREY, width=2)
    for place, line in enumerate(lines):
        pen.text((edge, edge + place * height), line, INK, font)
    return picture


def main(argv: list[str] | None = None, folder: Path = FOLDER) -> int:
    """Record or draw. Returns the exit status; that of the script if it was not 0."""
    description, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(description=description, epilog=details, allow_abbrev=False)
    commands = parser.add_subparsers(dest="what", required=True, metavar="record | draw")
    recorder = commands.add_parser("record", help="run a script and keep what it prints")
    recorder.add_argument("script", help="as in arcface_mnist.py")
    recorder.add_argument("options", nargs=argparse.REMAINDER, help="of the script")
    commands.add_parser("draw", help="draw all recordings")

    def work() -> int:
        options = parser.parse_args(argv)
        if options.what == "record":
            return record([options.script, *options.options], folder)
        draw_all(folder)
        return 0

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
