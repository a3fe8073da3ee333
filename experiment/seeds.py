"""The default recipe over several seeds: python -m experiment.seeds mnist --seeds 3

Seed 0 leaves its pictures and ``run.json`` in figures/<dataset>/; every seed leaves its record, without the
history, in ``seeds.json`` there. A seed that has a record is not run again, and an interrupted one is resumed.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from scipy import stats

from experiment import records
from experiment.records import ROOT, Problem


def interval(values: list[float]) -> tuple[float, float]:
    """Mean of the values, and half the width of its 95% confidence interval (Student's t)."""
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return float(np.mean(values)), float(half)


def describe(name: str, found: list[dict]) -> str:
    """Means with intervals over the seeds of one data set, in one line."""
    parts = [f"{name}, n = {len(found)} seeds"]
    for key, label in (("test_accuracy", "test accuracy"), ("test_accuracy_tta", "with test-time augmentation")):
        if found[0][key] is not None:
            mean, half = interval([100 * record[key] for record in found])
            parts.append(f"{label} {mean:.2f}% ± {half:.2f}")
    mean, half = interval([record["train_seconds"] for record in found])
    return "; ".join([*parts, f"training {mean:.0f} s ± {half:.0f}"])


def main(argv: list[str] | None = None) -> int:
    """Run the seeds that have no record yet. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", choices=("mnist", "cifar10"))
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N − 1 (default: 3)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="as in the scripts")
    options = parser.parse_args(argv)
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
        print(describe(options.dataset, found))
    except Problem as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
