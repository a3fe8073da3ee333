"""The report and the hand-in: python report/submission.py report | zip [--help]

``report`` builds report.pdf from report.typ, whose numbers come from the records on disk. ``zip``
builds it with the author's name, and packs it with all files of the project into
<last>_<first>_<id>_Project1.zip beside the README.
"""

import argparse
import datetime
import hashlib
import json
import os
import re
import subprocess
import sys
import time
import unicodedata
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

try:
    import experiment.errors  # noqa: F401, I001  first: Ctrl-C during the other imports is one line
    import typst
    from PIL import Image

    from experiment import records
    from experiment.errors import Problem, exit_status
    from experiment.records import ROOT
    from report.contents import listings, numbers
except ImportError as error:
    remedy = "python -m pip install -r report/requirements.txt"
    problem = f"{error.name} is not installed. Install what the report needs: {remedy}"
    if re.match("experiment|study|arcface_|report", error.name or ""):
        problem = f"A file of the project is missing: {error}. Restore it."
    sys.exit(f"error: {problem}")

HERE = Path(__file__).resolve().parent
PDF = "report/report.pdf"
THIS = "report/submission.py"
MANIFEST = "MANIFEST"  # in a hand-in: its files, in the format of sha256sum
# Variables that make git look at another repository; a hook of git sets some of them.
GIT_ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_NAMESPACE")
# The font of report.typ's text. With this standard typst refuses a text that it has no glyph for.
NAME_CHECK = b"""#set document(date: datetime(year: 2000, month: 1, day: 1))
#set text(font: "Libertinus Serif")
#sys.inputs.name"""
NAME_STANDARD = "a-2u"


class Author(NamedTuple):
    """The names and the student ID on the title page and in the zip file's name; "" for none."""

    last: str = ""
    first: str = ""
    id: str = ""


# --- the report -----------------------------------------------------------------------------------


def check(author: Author, required: bool) -> None:
    """Raise Problem for a name that a file's name cannot hold or that the report cannot show.

    required: whether all three must be given.
    """
    example = "as in --last mark --first philip --id 0123456 (make: LAST=mark FIRST=philip ...)"
    for option, value in author._asdict().items():
        if not value and not required:
            continue
        if not re.fullmatch(r"[^\W_][\w.' -]*", value) or ".." in value:
            raise Problem(f"--{option} is {value!r}: give letters and digits, {example}.")
        if len(value) > 60 or max(map(len, re.split(r"[ -]", value))) > 40:  # else off the page
            at_most = "at most 60 characters, and 40 without a space or hyphen"
            raise Problem(f"--{option} has {len(value)} characters: give {at_most}.")
        try:
            inputs = {"name": value}
            compile_pdf(NAME_CHECK, sys_inputs=inputs, pdf_standards=[NAME_STANDARD])
        except typst.TypstError as error:
            latin = "Give it in letters that the font has, such as Latin ones."
            text = f"--{option} is {value!r}, which the font of the report cannot show. {latin}"
            raise Problem(text) from error
    if len(os.fsencode(hand_in_name(author))) > 200:
        raise Problem("The three names are too long for the name of a file. Shorten one of them.")


def hand_in_name(author: Author) -> str:
    """The name of the hand-in: of the zip file, without its ending, and of the folder in it."""
    return "_".join([*author, "Project1"]).replace(" ", "-")


def compile_pdf(source: bytes | Path, **options: Any) -> bytes:
    """A typst source as PDF, with typst's own fonts alone: so it is the same on every machine."""
    return typst.compile(source, format="pdf", root=ROOT, ignore_system_fonts=True, **options)


def compile_report(
    author: Author, date: datetime.date | None = None, source: Path | bytes = HERE / "report.typ"
) -> bytes:
    """The report as PDF. The same arguments and records give the same bytes.

    Args:
        author: a placeholder stands where it is empty.
        date: of the title page and the metadata; None for the one in report.typ.
        source: the text in typst, or its file.

    Raises:
        Problem: a record or picture is missing, or report.typ is wrong; the text says where.
    """
    inputs = {"author": f"{author.first} {author.last}".strip(), "id": author.id}
    inputs |= {"numbers": json.dumps(numbers()), "listings": json.dumps(listings())}
    if date:
        inputs["date"] = date.isoformat()
    try:
        return compile_pdf(source, sys_inputs=inputs)
    except RuntimeError as error:  # typst's, which has a diagnostic, or of a file that is missing
        check_pictures()
        place = re.search(r"\S+\.typ:\d+(?=:)", getattr(error, "diagnostic", ""))
        where = place[0] if place else "report/report.typ"
        message = " ".join(str(error).split())
        raise Problem(f"The report cannot be compiled: {where}: {message}.") from error


def check_pictures() -> None:
    """Raise Problem if a picture that report.typ shows is missing or damaged."""
    text = (HERE / "report.typ").read_text(encoding="utf-8")
    for path in (ROOT / "figures" / name for name in re.findall(r'"([\w/-]+\.png)"', text)):
        with records.reading(path, "Restore it, or draw it again."), Image.open(path) as picture:
            picture.load()


def build(pdf: Path, author: Author, date: datetime.date | None = None) -> None:
    """Write the report to ``pdf``; the rest is as in :func:`compile_report`."""
    records.write(pdf, compile_report(author, date))


# --- the hand-in ----------------------------------------------------------------------------------


def pack(author: Author, date: datetime.date | None = None, folder: Path = ROOT) -> Path:
    """Build the report with this name and pack the hand-in. Returns the path of the zip file.

    Args:
        author, date: as in :func:`compile_report`; all names must be given.
        folder: where the zip file goes.

    Raises:
        Problem: a name cannot be used, a file is missing, or nothing says what belongs to it.
    """
    check(author, required=True)
    files = project_files(ROOT)
    contents = read_files(ROOT, files)
    changed = [path for path, known in files.items() if known not in (None, sha256(contents[path]))]
    contents[PDF] = compile_report(author, date)
    contents[MANIFEST] = manifest(contents).encode()
    name = hand_in_name(author)
    path = folder / f"{name}.zip"
    with (
        records.replacing(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for file, content in sorted(contents.items()):
            entry = zipfile.ZipInfo(f"{name}/{file}", time.localtime()[:6])
            mode = (ROOT / file).stat().st_mode if file in files else 0o100644
            entry.external_attr = mode << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    if changed:
        now = f"note: packed as they are now, not as {MANIFEST} has them: {some(changed)}"
        print(now, file=sys.stderr)
    return path


def project_files(root: Path) -> dict[str, str | None]:
    """What belongs to the hand-in: paths from ``root``, with their SHA-256 where it is known.

    In a clone these are the files that git tracks. An unpacked hand-in has no git; there its
    MANIFEST names them. The report is not among them, because it is always built anew.

    Raises:
        Problem: neither says what belongs to it; the text names the reason.
    """
    listed = root / MANIFEST
    files: dict[str, str | None] = {}
    if (root / ".git").exists():
        try:
            files = dict.fromkeys(git_files(root))
        except Problem:
            if not listed.exists():
                raise
    if listed.exists() and THIS not in files:
        files = read_manifest(listed)
    if THIS not in files:
        around = next((path for path in root.parents if (path / ".git").exists()), None)
        other = f" (the git repository around it, {around}, is another one)" if around else ""
        raise Problem(
            f"Nothing says what belongs to the hand-in: {root} is neither a git clone of this "
            f"project{other} nor an unpacked hand-in with its {MANIFEST}. Clone the project, or "
            "unpack the hand-in again."
        )
    return {path: known for path, known in files.items() if path not in (PDF, MANIFEST)}


def git_files(root: Path) -> list[str]:
    """The files that git tracks in the repository ``root``, and in no other one around it.

    Raises Problem, with git's own reason, where git cannot tell.
    """
    environment = {key: value for key, value in os.environ.items() if key not in GIT_ELSEWHERE}
    environment |= {"GIT_CEILING_DIRECTORIES": str(root.parent), "LC_ALL": "C"}
    command = ["git", "-C", str(root), "ls-files", "-z"]
    try:
        done = subprocess.run(command, capture_output=True, env=environment)
    except OSError as error:
        remedy = "Install git, or pack from an unpacked hand-in, which needs none."
        reason = f"git, which lists the files of a clone, cannot be started ({error.strerror})"
        raise Problem(f"{reason}. {remedy}") from error
    if done.returncode:
        said = [line.strip() for line in os.fsdecode(done.stderr).splitlines()]
        fatal = [line.removeprefix("fatal: ") for line in said if line.startswith("fatal: ")]
        reason = (fatal or [f"it ended with status {done.returncode}"])[0]
        advice = next((f" Run: {line}" for line in said if line.startswith("git config")), "")
        raise Problem(f"git cannot list the files of the project: {reason}.{advice}")
    return [os.fsdecode(path) for path in done.stdout.split(b"\0") if path]


def read_files(root: Path, files: dict[str, str | None]) -> dict[str, bytes]:
    """The contents of the project's files, as they are now. Raises Problem if any is missing."""
    missing = [path for path in files if not (root / path).is_file()]
    if missing:
        remedy = "Restore them with git restore, or unpack the hand-in again."
        raise Problem(f"Files of the hand-in are missing: {some(missing)}. {remedy}")
    return {path: (root / path).read_bytes() for path in files}


def some(paths: list[str]) -> str:
    """The first few of some paths, and how many more there are."""
    shown = ", ".join(sorted(paths)[:5])
    return shown if len(paths) <= 5 else f"{shown} and {len(paths) - 5} more"


def manifest(contents: dict[str, bytes]) -> str:
    """The MANIFEST of these files: a line for each, and at the end how many there are."""
    lines = [f"{sha256(content)}  {path}" for path, content in sorted(contents.items())]
    return "\n".join([*lines, f"# {len(lines)} files", ""])


def read_manifest(path: Path) -> dict[str, str | None]:
    """The files that a MANIFEST names, with their SHA-256. Raises Problem if it is damaged."""
    try:
        *lines, count = path.read_text(encoding="utf-8").splitlines()
        files = {line[66:]: line[:64] for line in lines}
        complete = len(files) >= int(count.removeprefix("# ").removesuffix(" files"))
        shaped = all(re.fullmatch(r"[0-9a-f]{64}  \S.*", line) for line in lines)
        places = [Path(os.path.abspath(path.parent / file)) for file in files]
        inside = all(place.is_relative_to(path.parent) for place in places)
    except (OSError, ValueError):
        complete = shaped = inside = False
    if not (complete and shaped and inside and THIS in files):
        raise Problem(f"{path} is damaged. Unpack the hand-in again.")
    return dict(files)


def sha256(content: bytes) -> str:
    """The SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


# --- the command ----------------------------------------------------------------------------------


def nfc(text: str) -> str:
    """An argparse type: text whose accents are part of their letters, as most fonts have them."""
    return unicodedata.normalize("NFC", text)


def iso_date(text: str) -> datetime.date:
    """An argparse type: a date as in 2026-12-01."""
    try:
        return datetime.datetime.strptime(text, "%Y-%m-%d").date()
    except ValueError as error:
        message = f"{text!r} is not a date such as 2026-12-01"
        raise argparse.ArgumentTypeError(message) from error


def parse(argv: list[str] | None) -> tuple[str, Author, datetime.date | None]:
    """What is asked for, of whom and when. A bad option ends the program with exit status 2."""
    description, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(description=description, epilog=details, allow_abbrev=False)
    parser.add_argument("what", choices=("report", "zip"))
    for option in Author._fields:
        text = "of the author, for the title page and the zip file's name"
        parser.add_argument(f"--{option}", type=nfc, default="", metavar="TEXT", help=text)
    text = "of the report, as in 2026-12-01 (default: the one in report.typ)"
    parser.add_argument("--date", type=iso_date, metavar="DATE", help=text)
    options = parser.parse_args(argv)
    author = Author(options.last, options.first, options.id)
    try:
        check(author, required=options.what == "zip")
    except Problem as problem:
        parser.error(str(problem))
    return options.what, author, options.date


def main(argv: list[str] | None = None) -> int:
    """Build what is asked for, and print its path. Returns the exit status."""

    def work() -> None:
        what, author, date = parse(argv)
        path = ROOT / PDF
        if what == "report":
            build(path, author, date)
        else:
            path = pack(author, date)
        print(path)

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
