"""Pictures of a terminal in which a script really ran: python report/terminal.py record | draw

``record arcface_mnist.py`` runs it in a pseudo-terminal and keeps what it printed, escape sequences and all, in
figures/terminal/; ``draw`` renders the recordings there as PNG.
"""

import os
import pty
import shlex
import sys
from pathlib import Path

import matplotlib
import pyte
from PIL import Image, ImageDraw, ImageFont

FOLDER = Path(__file__).resolve().parent.parent / "figures" / "terminal"
COLUMNS, LINES = 96, 26
INK, PAPER, GREY = "#1c1c1c", "#fafafa", "#d0d0d0"


def record(arguments: list[str]) -> int:
    """Run ``python`` with these arguments in a pseudo-terminal of COLUMNS × LINES. Returns its exit status."""
    log = FOLDER / f"{Path(arguments[0]).stem}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log.with_suffix(".tmp"), "wb") as file:
        file.write(f"$ python {shlex.join(arguments)}\r\n".encode())

        def keep(descriptor: int) -> bytes:
            read = os.read(descriptor, 1024)
            file.write(read)
            return read

        command = f"stty cols {COLUMNS} rows {LINES}; exec {shlex.join([sys.executable, *arguments])}"
        status = os.waitstatus_to_exitcode(pty.spawn(["sh", "-c", command], keep))
    if status == 0:
        os.replace(file.name, log)
    return status


def draw(log: Path, size: int = 26) -> Image.Image:
    """What the terminal showed at the end of a recording, with letters ``size`` pixels high."""
    screen = pyte.HistoryScreen(COLUMNS, LINES, history=1000)
    pyte.ByteStream(screen).feed(log.read_bytes())
    lines = ["".join(row[x].data for x in range(COLUMNS)) for row in screen.history.top] + screen.display
    while not lines[-1].strip():
        lines.pop()
    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSansMono.ttf", size)
    width, height, edge = font.getlength("M"), round(1.35 * size), size
    picture = Image.new("RGB", (round(width * COLUMNS) + 2 * edge, height * len(lines) + 2 * edge), PAPER)
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, 0, picture.width - 1, picture.height - 1), outline=GREY, width=2)
    for place, line in enumerate(lines):
        pen.text((edge, edge + place * height), line.rstrip(), INK, font)
    return picture


def main(argv: list[str]) -> int:
    """Record or draw. Returns the exit status."""
    if argv[:1] == ["record"] and len(argv) > 1:
        return record(argv[1:])
    if argv != ["draw"]:
        print(__doc__, file=sys.stderr)
        return 2
    for log in FOLDER.glob("*.log"):
        temporary = log.with_suffix(".tmp.png")
        draw(log).save(temporary)
        os.replace(temporary, log.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
