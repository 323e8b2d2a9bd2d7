"""The scripts of a study import one another as they do when they are run: by the folder that they lie in."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks" / "supar"))
