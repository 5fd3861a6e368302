"""The whole demo, stage by stage, in fresh processes: ``python benchmarks/demo.py [--repeats 3] [--markdown]``."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time

SCRIPT = """
import json, sys, time
start = time.perf_counter()
import altair, sklearn.datasets, scipy.stats, torch
import zoarium as za
from zoarium.measure import MEASURES
from zoarium.report import write_report
from zoarium.studies.demo import run_demo
from zoarium.train import plan
list(MEASURES)
imports = time.perf_counter() - start
result = run_demo(sys.argv[1])
print(json.dumps({"imports": imports, **result.seconds}))
"""


def main() -> None:
    """Run the demo several times and print each stage's median and range."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--markdown", action="store_true", help="print a Markdown section")
    options = parser.parse_args()
    runs = []
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            words = [sys.executable, "-c", SCRIPT, f"{folder}/zoo"]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            runs.append({**json.loads(done.stdout), "the whole process": time.perf_counter() - began})
    rows = {key: [run[key] for run in runs] for key in runs[0]}
    if options.markdown:
        print("## The demo: 126 models grown, measured, labelled, used and reported\n")
        print("| stage | seconds |\n|---|---|")
    for key, values in rows.items():
        text = f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
        print(f"| {key} | {text} |" if options.markdown else f"{key:18} {text}")
    if options.markdown:
        print("\n`in all` counts what follows the imports; a NumPy prototype of less work took 28 s.\n")


if __name__ == "__main__":
    main()
