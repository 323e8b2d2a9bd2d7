"""Growth sees the gradients of all processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_WORKER = """
import os, sys, torch
from torch import distributed, nn, optim
from sparsify.dst import RigL
from sparsify.masks import set_mask

child = os.fork()  # of what is imported already
rank, store = int(child == 0), sys.argv[1]
distributed.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
layer = nn.Linear(6, 1, bias=False)
with torch.no_grad():
    layer.weight.copy_(torch.tensor([[3.0, 0.1, 0, 0, 0, 0]]))
set_mask(layer, "weight", torch.tensor([[True, True, False, False, False, False]]))
model = nn.parallel.DistributedDataParallel(layer)
optimizer = optim.SGD(model.parameters(), lr=1e-6)
RigL(model, optimizer, total_steps=10, update_every=1, drop_fraction=0.8)
# Each process alone would grow its own position 2 or 3; position 4 has the largest sum.
gradient = torch.tensor([[0, 0, 5.0, 0, 4.0, 0]]) if rank == 0 else torch.tensor([[0, 0, 0, 5.0, 4.0, 0]])
model(gradient).sum().backward()
optimizer.step()
distributed.destroy_process_group()
if child and os.waitpid(child, 0)[1] != 0:
    sys.exit("the other process failed")
print(layer.weight_mask.nonzero()[:, 1].tolist(), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_two_processes_grow_the_same_position_from_the_summed_gradient(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _WORKER, str(tmp_path / "store")],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[0, 4]"] * 2
