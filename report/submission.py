"""The report and the hand-in: python report/submission.py report | zip [--last NAME --first NAME --id NUMBER]

``report`` builds report.pdf from report.typ, whose numbers come from the records on disk. ``zip`` builds it with the
name, and packs it with the Python files and the figures into <last>_<first>_<id>_Project1.zip beside the README.
"""

import argparse
import datetime
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import typst

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

from experiment import benchmark, records, seeds, study_figures  # noqa: E402
from experiment.records import Problem  # noqa: E402

PACKED = ("*.py", "*.png", "README.md", "requirements.txt")  # beside the PDF; of the files that git knows


def numbers() -> dict:
    """Every number of the report, as it is printed there, from the records on disk.

    Returns:
        mnist, cifar10: of the default recipe's runs. tables: those of the README files, as lists of rows.

    Raises:
        Problem: a record is missing or damaged.
    """
    study = study_figures.tables(ROOT / "figures/study")
    found = {"tables": {name: rows(table) for name, table in [("results", seeds.table()), *study.items()]}}
    for dataset in seeds.DATASETS:
        folder = ROOT / "figures" / dataset
        first, every = records.load_json(folder / "run.json"), records.load_json(folder / "seeds.json")
        found[dataset] = {
            **{key: first[key] for key in ("scale", "margin", "epochs", "batch_size", "embedding_size", "precision")},
            "device": first["device_name"],
            "parameters": f"{first['parameters']:,}",
            "run": f"{100 * first['test_accuracy']:.2f}",
            "run_train": f"{100 * first['history'][-1]['train_accuracy']:.2f}",
            "run_tta": f"{100 * first['test_accuracy_tta']:.2f}" if first["test_accuracy_tta"] is not None else None,
            "seeds": len(every),
            **seeds.means(every),
        }
    for part, table in (("head", benchmark.head_table), ("step", benchmark.step_table)):
        path = benchmark.FOLDER / f"{part}.json"
        if path.exists():
            found["tables"][part] = rows(table(records.load_json(path)))
    return found


def rows(table: str) -> list[list[str]]:
    """The cells of a table in Markdown, without its line of dashes and without emphasis."""
    lines = [[cell.strip().replace("*", "") for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return [lines[0], *lines[2:]]


def build(pdf: Path, last: str, first: str, number: str) -> None:
    """Compile the report.

    Args:
        pdf: where it goes. last, first, number: the author's names and student ID; "" for a placeholder.

    Raises:
        Problem: the report cannot be compiled; the text says where.
    """
    inputs = {"author": f"{first} {last}".strip(), "id": number, "date": datetime.date.today().isoformat()}
    inputs["numbers"] = json.dumps(numbers())
    with records.replacing(pdf) as temporary:
        try:
            typst.compile(HERE / "report.typ", output=temporary, root=ROOT, sys_inputs=inputs)
        except typst.TypstError as error:
            raise Problem(f"report.typ cannot be compiled.\n{error.diagnostic}") from error


def pack(last: str, first: str, number: str) -> Path:
    """Build the report with this name and pack the hand-in. Returns the path of the zip file.

    Raises:
        Problem: a name is empty or could not be part of a file's name.
    """
    for option, value in (("LAST", last), ("FIRST", first), ("ID", number)):
        if not re.fullmatch(r"[^\W_][\w.' -]*", value) or ".." in value:
            raise Problem(
                f"{option} is {value!r}: give letters and digits, as in make submission LAST=mark FIRST=philip ID=0123456."
            )
    name = f"{last}_{first}_{number}_Project1".replace(" ", "-")
    known = subprocess.run(["git", "-C", ROOT, "ls-files", "-z", *PACKED], capture_output=True, text=True)
    if known.returncode:
        raise Problem("The files to pack are those that git knows, and this is no git clone. Clone the repository first.")
    path = ROOT / f"{name}.zip"
    pdf = HERE / f".{name}.pdf"
    try:
        build(pdf, last, first, number)
        with records.replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(filter(None, known.stdout.split("\0"))):
                archive.write(ROOT / file, f"{name}/{file}")
            archive.write(pdf, f"{name}/report/report.pdf")
    finally:
        pdf.unlink(missing_ok=True)
    return path


def main(argv: list[str] | None = None) -> int:
    """Build what is asked for. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("report", "zip"))
    for option in ("last", "first", "id"):
        parser.add_argument(f"--{option}", default="", metavar="TEXT", help="of the author; for the title page and the zip")
    options = parser.parse_args(argv)

    def work() -> None:
        if options.what == "zip":
            print(pack(options.last, options.first, options.id))
        else:
            build(HERE / "report.pdf", options.last, options.first, options.id)
            print(HERE / "report.pdf")

    return records.exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
