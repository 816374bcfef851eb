"""Few steps: no sampler amplifies, on both golden problems and the grids of all schedules."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_few_steps_err_at_most_twice_as_much_as_ddim():
    # The mixture, and the grids on which steps are least even; the law of samplers has the Gaussian.
    script = Path(__file__).parents[3] / "benchmarks" / "samplers.py"
    done = subprocess.run(
        [sys.executable, str(script), "--few"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no sampler has more than twice the error of DDIM: yes" in done.stdout
