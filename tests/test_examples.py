"""The examples run, at a size that takes seconds."""

import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_swirl(tmp_path):
    small = ["--steps", "60", "--batch-size", "64", "--width", "16", "--depth", "1"]
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "swirl.py"), *small],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # Known from the points alone, by numpy: see also tests/test_data.py.
    assert "entropy of the points: 4.7353 bits/dim" in done.stdout
    last = re.search(r"training VLB: (\d+\.\d+) \+- \d+\.\d+ bits/dim", done.stdout)
    # No model beats the entropy, and 60 steps are enough to be better than no compression at all
    # plus the cost of the finest noise levels.
    assert last is not None
    assert 4.7353 < float(last[1]) < 20
    for name in ("curves.png", "schedule.png", "samples.png"):
        assert (tmp_path / "runs" / "swirl" / name).read_bytes().startswith(b"\x89PNG")
