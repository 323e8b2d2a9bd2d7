"""The coordinate check's acceptance: an MLP, GPT-2, Llama and a ResNet over densities, widths and both.

    python benchmarks/coord_check.py [--only gpt2,llama] [--seeds 3] [-o docs/results/coord_check]
    python benchmarks/coord_check.py --report docs/results/coord_check.md     # tables from what is there

Each check trains all three parameterizations at the learning rate that is found on the dense model. Over
densities, SμPar is then run without the rule for initial weights and without the one for learning rates, at
the same learning rate. Images are scikit-learn's digits, text is the source of Python's asyncio package.
Every check leaves NAME.json and NAME.png in the folder, and is not run again while these are there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import sparsify
from sparsify.train import Data, load_data
from sparsify.train.coord_check import CoordCheck
from sparsify.train.coord_check_slopes import FLAT, STEEP

HEAD = 64
TOKENS = 256
LENGTH = 128
TITLES = {"supar": "SμPar", "mup": "μP", "sp": "SP"}


def mlp(width: int, depth: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(64, width), nn.ReLU()]
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def gpt2(width: int, depth: int) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=TOKENS,
        n_positions=LENGTH,
        n_embd=width,
        n_layer=depth,
        n_head=width // HEAD,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def llama(width: int, depth: int) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=TOKENS,
        max_position_embeddings=LENGTH,
        hidden_size=width,
        intermediate_size=2 * width + width // 2,
        num_hidden_layers=depth,
        num_attention_heads=width // HEAD,
        num_key_value_heads=max(1, width // HEAD // 2),
        bos_token_id=0,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config)


def resnet(width: int, depth: int) -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        num_channels=1,
        embedding_size=width // 4,
        hidden_sizes=[width // 4, width // 2],
        depths=[max(1, depth // 2)] * 2,
        layer_type="basic",
        num_labels=10,
    )
    return ResNetForImageClassification(config)


@dataclass(frozen=True)
class Check:
    """One model and what varies.

    Attributes:
        build: Makes the model of a width and a depth.
        width: Its hidden width.
        depth: Its hidden layers or blocks.
        mode: `density`, `width` or `isoflop`.
        rules: Whether SμPar is run without each of its rules, too.
        says: What the report calls the model.
    """

    build: Callable[[int, int], nn.Module]
    width: int
    depth: int
    mode: str
    rules: bool
    says: str

    @property
    def language(self) -> bool:
        return self.build in (gpt2, llama)


CHECKS: Mapping[str, Check] = {
    "mlp": Check(mlp, 256, 4, "density", True, "MLP"),
    "gpt2": Check(gpt2, 256, 3, "density", True, "GPT-2"),
    "llama": Check(llama, 256, 3, "density", True, "Llama"),
    "resnet": Check(resnet, 128, 4, "density", True, "ResNet, BatchNorm"),
    "gpt2_width": Check(gpt2, 128, 2, "width", False, "GPT-2, widths at density 1/4"),
    "gpt2_isoflop": Check(gpt2, 128, 2, "isoflop", False, "GPT-2, equal FLOPs"),
    "gpt2_5m": Check(gpt2, 320, 4, "density", False, "GPT-2"),
}


def largest(slopes: Mapping[str, float | None]) -> float:
    """Largest |slope|; infinite where one is not finite."""
    known = [abs(slope) for slope in slopes.values() if slope is not None]
    return max(known) if len(known) == len(slopes) else math.inf


def summary(found: CoordCheck) -> dict[str, dict[str, float | None]]:
    """Largest |slope|, share of flat and of steep layers, by parameterization, before and after the steps."""
    return {
        name: {
            "step_0": largest(found.initial_slopes[name]),
            "last_step": largest(found.slopes[name]),
            "flat": found.flat[name],
            "steep": found.steep[name],
        }
        for name in found.slopes
    }


def data_of(check: Check, text: Path) -> Data:
    if not check.language:
        return load_data("digits")
    return replace(load_data(f"text:{text}", sequence_length=LENGTH), name="source of Python's asyncio")


def measure(name: str, check: Check, arguments: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    model = check.build(check.width, check.depth)
    data = data_of(check, arguments.text)
    example = torch.zeros((2, 16), dtype=torch.long) if check.language else torch.zeros(2, 1, 8, 8)
    traced = sparsify.trace(model, (example,))
    plot = arguments.output / f"{name}.png"
    started, used = time.perf_counter(), time.process_time()
    whole = sparsify.coord_check(traced, data=data, mode=check.mode, seeds=arguments.seeds, plot=plot)
    seconds, cpu = time.perf_counter() - started, time.process_time() - used
    result = {
        "model": {"name": check.says, "width": check.width, "depth": check.depth, "mode": check.mode},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "settings": whole.settings,
        "points": list(whole.points),
        "judged": whole.judged,
        "parameterizations": summary(whole),
        "slopes": whole.slopes,
        "initial_slopes": whole.initial_slopes,
        "spread": whole.spread,
    }
    if check.rules:
        options = {"seeds": arguments.seeds, "lr": whole.settings["lr"], "parameterizations": ["supar"]}
        for off, rules in (("init", ["lr"]), ("lr", ["init"])):
            found = sparsify.coord_check(traced, data=data, rules=rules, **options)
            result[f"supar_without_{off}"] = summary(found)["supar"]
    return result


def verdict(result: Mapping[str, Any]) -> str:
    """Whether a check says what it should: SμPar flat, the others steep, rules that are off noticed."""
    if not any(result["judged"].values()):
        return "not judged"
    by = result["parameterizations"]
    failed = []
    if by["supar"]["flat"] != 1.0:
        failed.append("SμPar is not flat")
    wrong = ("sp",) if result["model"]["mode"] == "width" else ("sp", "mup")
    failed += [f"{TITLES[name]} is not steep" for name in wrong if by[name]["steep"] < 0.5]
    if "supar_without_lr" in result:
        failed += ["init rule unnoticed"] * (result["supar_without_init"]["step_0"] <= FLAT)
        failed += ["LR rule unnoticed"] * (result["supar_without_lr"]["last_step"] <= FLAT)
    return ", ".join(failed) or "yes"


def acceptance(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Table: one row a check."""
    rows = [
        "| model | width × depth | parameters | LR | layers | "
        + " | ".join(f"{title} step 0 | {title} step 10 | > {STEEP:g}" for title in TITLES.values())
        + " | as it should |",
        "|---|---|---|---|---|" + "---|" * (3 * len(TITLES) + 1),
    ]
    for result in results.values():
        model, by = result["model"], result["parameterizations"]
        cells = [model["name"], f"{model['width']} × {model['depth']}", f"{result['parameters'] / 1e6:.2f}M"]
        cells += [f"2^{math.log2(result['settings']['lr']):g}", str(len(result["judged"]))]
        for name in TITLES:
            steep = by[name]["steep"]
            cells += [f"{by[name]['step_0']:.2f}", f"{by[name]['last_step']:.2f}"]
            cells.append("–" if steep is None else f"{steep:.0%}")
        rows.append("| " + " | ".join([*cells, verdict(result)]) + " |")
    return "\n".join(rows)


def rules_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Table: SμPar with all rules, without the one, and without the other."""
    rows = [
        "| model | all: step 0 | step 10 | without init: step 0 | step 10 | without LR: step 0 | step 10 |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results.values():
        if "supar_without_lr" in result:
            kinds = (
                result["parameterizations"]["supar"],
                result["supar_without_init"],
                result["supar_without_lr"],
            )
            cells = [f"{kind[when]:.2f}" for kind in kinds for when in ("step_0", "last_step")]
            rows.append("| " + " | ".join([result["model"]["name"], *cells]) + " |")
    return "\n".join(rows)


def times(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Table: what a check costs."""
    rows = ["| model | parameters | CPU seconds | seconds | load average |", "|---|---|---|---|---|"]
    for result in results.values():
        cells = [
            result["model"]["name"],
            f"{result['parameters'] / 1e6:.2f}M",
            f"{result['cpu_seconds']:.0f}",
        ]
        cells += [f"{result['seconds']:.0f}", f"{result['load_average']:g}"]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def report(folder: Path, page: Path) -> None:
    """Writes the tables into a page, between `<!-- table: NAME -->` and `<!-- end -->`."""
    files = {name: folder / f"{name}.json" for name in CHECKS}
    results = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    text = page.read_text()
    for name, table in (("acceptance", acceptance), ("rules", rules_table), ("times", times)):
        before, mark, rest = text.partition(f"<!-- table: {name} -->\n")
        if mark:
            text = (
                before + mark + "\n" + table(results) + "\n\n<!-- end -->" + rest.partition("<!-- end -->")[2]
            )
    page.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", default=",".join(CHECKS), help="checks to run, comma-separated")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--text", type=Path, default=Path(asyncio.__file__).parent)
    parser.add_argument("--report", type=Path, help="page whose tables are written anew; nothing is run")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/results/coord_check"))
    arguments = parser.parse_args()
    if arguments.report:
        report(arguments.output, arguments.report)
        return
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name in arguments.only.split(","):
        if name not in CHECKS:
            sys.exit(f"unknown check '{name}'; known are {', '.join(CHECKS)}")
        file = arguments.output / f"{name}.json"
        if not file.exists():
            result = measure(name, CHECKS[name], arguments)
            file.write_text(json.dumps(result, indent=1) + "\n")
        result = json.loads(file.read_text())
        print(f"{name}: {result['cpu_seconds']} CPU s, as it should: {verdict(result)}", file=sys.stderr)


if __name__ == "__main__":
    main()
