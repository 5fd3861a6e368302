"""Kills at random moments; ``make storm`` strikes more often."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

KILLS = int(os.environ.get("ZOARIUM_KILLS", "12"))


def test_killed_at_random_over_its_whole_life_a_zoo_ends_with_the_same_bits(tmp_path):
    storm = Path(__file__).with_name("storm.py")
    command = [sys.executable, str(storm), str(tmp_path / "storm"), "--kills", str(KILLS), "--seed", "3"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr + run.stdout
    summary = json.loads(run.stdout)
    assert summary["kills"] >= KILLS
    assert summary["failures"] == []
