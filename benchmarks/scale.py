"""Seconds and memory of planning and rewriting a Llama-3-70B-shaped model on the meta device, over its depth.

    python benchmarks/scale.py [--depths 8,16,32,64,80,128] [--output docs/results/scale]

Every depth runs in a process of its own, with one thread; seconds are those of the processor, which an idle
machine's clock shows too (`wall_seconds` is the clock's). Writes OUTPUT.json and OUTPUT.png.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sparsify.graph.facts import facts
from sparsify.graph.trace import trace
from sparsify.passes import rewrite
from sparsify.planning import plan

STAGES = ("trace", "facts", "plan", "rewrite")
WIDTHS = {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


def peak_bytes() -> int:
    """Peak resident set of this process (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(depth: int) -> dict[str, Any]:
    """Runs every stage once in this process."""
    torch.set_num_threads(1)
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**WIDTHS, num_hidden_layers=depth)).eval()
        ids = torch.zeros(2, 16, dtype=torch.long)
    seconds: dict[str, float] = {}

    def timed(stage: str, work: Callable[[], Any]) -> Any:
        start = time.process_time()
        done = work()
        seconds[stage] = round(time.process_time() - start, 2)
        return done

    before, clock = peak_bytes(), time.perf_counter()
    traced = timed("trace", lambda: trace(model, (), {"input_ids": ids}))
    found = timed("facts", lambda: facts(traced))
    made = timed("plan", lambda: plan(traced, sparsity=0.75, facts=found))
    result = timed("rewrite", lambda: rewrite(traced, made, facts=found))
    return {
        "depth": depth,
        "nodes": len(traced.module.graph.nodes),
        "parameters": {
            "dense": sum(parameter.numel() for parameter in model.parameters()),
            "stored": sum(parameter.numel() for parameter in result.parameters()),
        },
        "flops_ratio": result.sparsify.plan.flops.ratio,
        "seconds": seconds | {"all": round(sum(seconds.values()), 2)},
        "wall_seconds": round(time.perf_counter() - clock, 2),
        "peak_bytes": {"before": before, "after": peak_bytes()},
    }


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws seconds by stage, and peak memory, against depth."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    depths = [row["depth"] for row in rows]
    left.stackplot(depths, [[row["seconds"][stage] for row in rows] for stage in STAGES], labels=STAGES)
    left.axhline(60, color="black", linestyle=":")
    left.set(xlabel="layers", ylabel="seconds of processor time", xlim=(0, None), ylim=(0, None))
    left.legend(loc="upper left")
    right.plot(depths, [row["peak_bytes"]["after"] / 2**30 for row in rows], marker="o")
    right.axhline(4, color="black", linestyle=":")
    right.set(xlabel="layers", ylabel="peak resident memory, GiB", xlim=(0, None), ylim=(0, None))
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depths", default="8,16,32,64,80,128")
    parser.add_argument("--output", type=Path, default=Path("docs/results/scale"))
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one)))
        return
    rows = []
    for depth in map(int, args.depths.split(",")):
        command = [sys.executable, __file__, "--one", str(depth)]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
        print(json.dumps(rows[-1]), file=sys.stderr)
    about = {"torch": torch.__version__, "threads": 1, "example": [2, 16], "widths": WIDTHS}
    args.output.with_suffix(".json").write_text(json.dumps(about | {"results": rows}, indent=1) + "\n")
    plot(rows, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
