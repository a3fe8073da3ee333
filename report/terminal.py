"""Pictures of a terminal in which a script really ran.

    python report/terminal.py record arcface_mnist.py    runs it in a pseudo-terminal, keeps what it printed
    python report/terminal.py draw                       the recordings, as SVG
"""

import os
import pty
import shlex
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
COLUMNS, LINES = 100, 34


def record(arguments: list[str]) -> int:
    """Run ``python`` with these arguments in a pseudo-terminal. Returns its exit status.

    What it printed goes to report/<script>.log, escape sequences and all, after the command as a person types it.
    """
    log = HERE / f"{Path(arguments[0]).stem}.log"
    os.environ |= {"COLUMNS": str(COLUMNS), "LINES": str(LINES)}
    with open(log.with_suffix(".tmp"), "wb") as file:
        file.write(f"$ python {shlex.join(arguments)}\r\n".encode())

        def keep(descriptor: int) -> bytes:
            read = os.read(descriptor, 1024)
            file.write(read)
            file.flush()
            return read

        status = os.waitstatus_to_exitcode(pty.spawn([sys.executable, *arguments], keep))
    if status == 0:
        os.replace(file.name, log)
    return status


if __name__ == "__main__":
    sys.exit(record(sys.argv[2:]) if sys.argv[1] == "record" else 0)
