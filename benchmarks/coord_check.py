"""The coordinate check's acceptance: an MLP, GPT-2, Llama and a ResNet over densities 1 … 1/16.

    python benchmarks/coord_check.py [--models mlp,gpt2,llama,resnet] [--width 128] [--depth 4] [--seeds 3]
        [--text DIR] [-o FOLDER]

For every model: all three parameterizations, then SμPar without the rule for initial weights and without the
one for learning rates, at the same learning rate. Images are scikit-learn's digits, text is the source of
Python's asyncio package. One JSON object on stdout; the folder gets it together with plots and all slopes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import sparsify
from sparsify.train.coord_check import CoordCheck

HEAD = 64
TOKENS = 256
LENGTH = 128


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


MODELS: Mapping[str, Callable[[int, int], nn.Module]] = {
    "mlp": mlp,
    "gpt2": gpt2,
    "llama": llama,
    "resnet": resnet,
}


def summary(found: CoordCheck) -> dict[str, Any]:
    """Largest |slope|, share of flat and of steep layers, by parameterization, before and after the steps."""
    data = {}
    for name in found.slopes:
        first, last = found.initial_slopes[name], found.slopes[name]
        data[name] = {
            "step_0": _largest(first),
            "last_step": _largest(last),
            "flat": found.flat[name],
            "steep": found.steep[name],
        }
    return data


def _largest(slopes: Mapping[str, float | None]) -> float | None:
    known = [abs(slope) for slope in slopes.values() if slope is not None]
    return max(known) if len(known) == len(slopes) else math.inf


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    model = MODELS[name](arguments.width, arguments.depth)
    language = name in ("gpt2", "llama")
    data = f"text:{arguments.text}" if language else "digits"
    example = torch.zeros((2, 16), dtype=torch.long) if language else torch.zeros(2, 1, 8, 8)
    traced = sparsify.trace(model, (example,))
    started, used = time.perf_counter(), time.process_time()
    plot = arguments.output / f"coord_check_{name}.png"
    whole = sparsify.coord_check(traced, data=data, seeds=arguments.seeds, plot=plot)
    seconds, cpu = time.perf_counter() - started, time.process_time() - used
    lr = whole.settings["lr"]
    result = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "layers": len(whole.judged),
        "judged": sum(whole.judged.values()),
        "lr": lr,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "densities": [point["density"] for point in whole.points],
        "parameterizations": summary(whole),
    }
    slopes = {"all rules": whole.slopes, "all rules, step 0": whole.initial_slopes}
    for off, rules in (("init", ["lr"]), ("lr", ["init"])):
        found = sparsify.coord_check(
            traced, data=data, seeds=arguments.seeds, lr=lr, parameterizations=["supar"], rules=rules
        )
        result[f"supar_without_{off}"] = summary(found)["supar"]
        slopes |= {f"without {off}": found.slopes, f"without {off}, step 0": found.initial_slopes}
    (arguments.output / f"coord_check_{name}.json").write_text(json.dumps(slopes, indent=1) + "\n")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--text", type=Path, default=Path(asyncio.__file__).parent)
    parser.add_argument("-o", "--output", type=Path, default=Path("coord_check"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    results = {}
    for name in arguments.models.split(","):
        if name not in MODELS:
            sys.exit(f"unknown model '{name}'; known are {', '.join(MODELS)}")
        results[name] = measure(name, arguments)
        print(f"{name}: {results[name]['seconds']} s", file=sys.stderr)
    data = {"threads": torch.get_num_threads(), "width": arguments.width, "depth": arguments.depth}
    text = json.dumps({**data, "seeds": arguments.seeds, "models": results}, indent=1)
    print(text)
    (arguments.output / "coord_check.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
