"""`riskstream train` itself, killed in the middle: the same command goes on and makes the same bundle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

COMMAND = ["train", "--simulated", "5000", "--accounts", "60", "--fraud-rate", "0.03", "--label-delay", "3d"]
NET = ["--architecture", "mlp", "--no-refit", "--version", "1"]


def started(out: Path, hash_seed: int) -> subprocess.Popen[str]:
    """`hash_seed`: Python's; what hangs on the order of a set comes out differently under another one."""
    command = [sys.executable, "-m", "stream.cli", *COMMAND, *NET, "--out", str(out)]
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


def test_a_killed_training_goes_on_and_ends_with_the_same_bundle(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    undisturbed = started(whole, 1)
    assert undisturbed.wait(600) == 0, undisturbed.communicate()[1]

    process, checkpoint = started(killed, 2), tmp_path / ".killed.checkpoints" / "member-1.npz"
    ends = time.monotonic() + 600
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < ends:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL, process.communicate()[1]
    assert checkpoint.exists()
    assert not killed.exists()

    again = started(killed, 3)
    assert again.wait(600) == 0, again.communicate()[1]
    assert not checkpoint.parent.exists()
    for name in ("golden.npz", "model.ts", "reference.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    one, other = (json.loads((folder / "manifest.json").read_text()) for folder in (whole, killed))
    for field in ("calibration", "thresholds", "bands", "metrics"):
        assert one[field] == other[field], field
