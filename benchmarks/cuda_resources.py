"""Registers, spills and shared memory of the CUDA kernels, as the compiler states them.

python -m benchmarks.cuda_resources            needs nvcc, no GPU; writes docs/results/gpu/cubins.json
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from sparsify.errors import UserError
from sparsify.runtime.cuda import cuda_state

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "sparsify" / "runtime" / "native" / "cuda" / "kernels.cu"
RESULT = ROOT / "docs" / "results" / "gpu" / "cubins.json"
ARCHITECTURES = ("sm_80", "sm_89", "sm_90", "sm_100")

_ENTRY = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for '(?P<architecture>\w+)'"
    r"(?:(?!Compiling entry function).)*?Function properties for (?P=kernel)\s+"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r"(?:(?!Compiling entry function).)*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True)
class Usage:
    """What one kernel takes of a multiprocessor.

    Attributes:
        kernel: Entry point, `<kind>_<rows of a block>_<variant>`.
        architecture: What it was compiled for.
        registers: Of each thread.
        spill_stores: Bytes that a thread writes since it lacks registers.
        spill_loads: Bytes that it reads back.
        stack: Bytes of stack of a thread.
        shared: Bytes of shared memory of a block.
    """

    kernel: str
    architecture: str
    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    shared: int


def parse(log: str) -> list[Usage]:
    """Reads what ptxas -v says of every entry function, in order of name and architecture."""
    found = []
    for match in _ENTRY.finditer(log):
        shared = _SHARED.search(match["rest"])
        numbers = (int(match[name]) for name in ("registers", "stores", "loads", "stack"))
        usage = Usage(match["kernel"], match["architecture"], *numbers, int(shared.group(1)) if shared else 0)
        found.append(usage)
    return sorted(found, key=lambda usage: (usage.kernel, ARCHITECTURES.index(usage.architecture)))


def compile_log(nvcc: str, architecture: str, source: Path = SOURCE) -> str:
    """What the compiler says about kernels for one architecture.

    Raises:
        UserError: It fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        words = [
            nvcc,
            "-std=c++17",
            "-O3",
            "-cubin",
            f"-arch={architecture}",
            "-Xptxas",
            "-v",
            "-I",
            str(SOURCE.parent),
        ]
        done = subprocess.run(
            [*words, str(source), "-o", str(Path(folder) / "kernels.cubin")],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise UserError(f"{nvcc} fails on {source}: {done.stderr.strip()[-2000:]}")
    return done.stderr + done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nvcc", default=cuda_state().nvcc, help="the compiler, if it is not found")
    arguments = parser.parse_args()
    if arguments.nvcc is None:
        sys.exit("nvcc was not found: set CUDA_HOME, or say where it is with --nvcc")
    version = subprocess.run([arguments.nvcc, "--version"], capture_output=True, text=True, check=True)
    log = "".join(compile_log(arguments.nvcc, architecture) for architecture in ARCHITECTURES)
    rows = [asdict(usage) for usage in parse(log)]
    release = re.search(r"V[\d.]+", version.stdout)
    result = {"compiler": f"nvcc {release.group() if release else 'unknown'}", "kernels": rows}
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{len(rows)} kernels, {sum(row['spill_stores'] > 0 for row in rows)} with spills: {RESULT}")


if __name__ == "__main__":
    main()
