"""How fast the front door opens: `nnx --help` against a bare Python start, `nnx runs --json` on 50 runs.

bench/front_door.py [CHECKPOINT]      a real nnU-Net checkpoint to fill the 50 runs with (two copies each)
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nnunet_ext.layout import ROOTS, Layout
from nnunet_ext.run import Run

HERE = Path(__file__).parents[1]
ROUNDS = 15


def median_ms(argv: list[str], environment: dict[str, str], forget: Path | None = None) -> float:
    """Of the rounds; `forget` is a folder to be removed before each."""
    times = []
    for _ in range(ROUNDS):
        if forget is not None:
            shutil.rmtree(forget, ignore_errors=True)
        begun = time.perf_counter()
        subprocess.run(argv, env=environment, check=True, stdout=subprocess.DEVNULL)
        times.append(1000 * (time.perf_counter() - begun))
    return statistics.median(times)


def main() -> None:
    checkpoint = Path(sys.argv[1] if sys.argv[1:] else HERE / "tests/data/checkpoints/nnunet-2.8.1_numpy2_2d.pth")
    with tempfile.TemporaryDirectory() as folder:
        layout = Layout(*(Path(folder) / root for root in ROOTS))
        for fold in range(50):
            run = Run("Dataset004_Hippocampus", "2d", fold)
            layout.fold_folder(run).mkdir(parents=True)
            for kind in ("latest", "best"):
                shutil.copyfile(checkpoint, layout.checkpoint(run, kind))
        roots = dict(zip(ROOTS, map(str, vars(layout).values()), strict=True))
        cache = Path(folder) / "cache"
        environment = {**os.environ, **roots, "XDG_CACHE_HOME": str(cache)}
        nnx = str(HERE / "bin" / "nnx")
        bare = median_ms([sys.executable, "-c", "pass"], environment)
        rows = [
            ("python -c pass", bare, None),
            ("nnx --help", median_ms([nnx, "--help"], environment), 150),
            ("nnx runs --json, first time", median_ms([nnx, "runs", "--json"], environment, forget=cache), 500),
            ("nnx runs --json, again", median_ms([nnx, "runs", "--json"], environment), 500),
        ]
        size = f"{checkpoint.stat().st_size / 1e6:.1f} MB"
    print(f"median of {ROUNDS}; 50 runs with 100 checkpoints of {size}")
    for what, median, promised in rows:
        promise = "" if promised is None else f"  promised < {promised} ms"
        print(f"{what:28}{median:7.0f} ms  {median / bare:5.1f} x bare{promise}")


if __name__ == "__main__":
    main()
