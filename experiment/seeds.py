"""The default recipe over several seeds: python -m experiment.seeds mnist --seeds 3

Seed 0 leaves its pictures and ``run.json`` in figures/<dataset>/; every seed leaves its record, without the
history, in ``seeds.json`` there. A seed that has a record is not run again, and an interrupted one is resumed.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from experiment import records
from experiment.records import ROOT, Problem, cell

DATASETS = ("mnist", "cifar10")


def table() -> str:
    """The README's table of results, in Markdown, from the records of all seeds."""
    lines = ["| | seeds | test accuracy, % | with TTA, % | training, s | angle to own embedding centre (test) | machine |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for folder in DATASETS:
        path = ROOT / "figures" / folder / "seeds.json"
        if path.exists():
            found = records.load_json(path)
            views = [100 * record["test_accuracy_tta"] for record in found if record["test_accuracy_tta"] is not None]
            cells = [
                found[0]["dataset"],
                str(len(found)),
                f"**{cell([100 * record['test_accuracy'] for record in found], 2)}**",
                cell(views, 2) if views else "–",
                cell([record["train_seconds"] for record in found], 0),
                cell([record["angles"]["intra_test"] for record in found], 1) + "°",
                f"{found[0]['device_name']}, {found[0]['precision']}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_table() -> None:
    """Put the table between its two marks in the README."""
    readme = ROOT / "README.md"
    with records.replacing(readme) as temporary:
        temporary.write_text(records.fill(readme.read_text(encoding="utf-8"), "results", table()), encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Run the seeds that have no record yet. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", choices=(*DATASETS, "table"), help="or 'table': write the README's table of results")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N − 1 (default: 3)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="as in the scripts")
    options = parser.parse_args(argv)
    if options.dataset == "table":
        write_table()
        return 0
    folder = ROOT / "figures" / options.dataset
    path = folder / "seeds.json"
    try:
        found = records.load_json(path) if path.exists() else []
        for seed in range(options.seeds):
            if seed in [record["seed"] for record in found]:
                continue
            out = folder if seed == 0 else folder / f"seed-{seed}"
            command = [sys.executable, f"arcface_{options.dataset}.py", "--resume"]
            command += ["--seed", str(seed), "--out", out.relative_to(ROOT)] if seed else []
            command += ["--data", options.data.resolve()] if options.data else []
            status = subprocess.run(command, cwd=ROOT).returncode
            if status:
                return status
            record = records.load_json(out / "run.json")
            if record["dataset"] == "synthetic":
                raise Problem(f"{out} is of the synthetic stand-in. Name the folder with the real data with --data.")
            del record["history"]
            found = sorted([*found, record], key=lambda record: record["seed"])
            records.save_json(path, found)
            if seed:
                shutil.rmtree(out)
        print(table())
    except Problem as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
