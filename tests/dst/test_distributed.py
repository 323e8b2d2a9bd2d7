"""Growth sees the gradients of all processes."""

from __future__ import annotations

import os
import subprocess
import sys

_WORKER = """
import sys, torch
from torch import distributed, nn, optim
from sparsify.dst import RigL
from sparsify.masks import set_mask

rank, store = int(sys.argv[1]), sys.argv[2]
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
print(layer.weight_mask.nonzero()[:, 1].tolist())
distributed.destroy_process_group()
"""


def test_two_processes_grow_the_same_position_from_the_summed_gradient(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    outputs = [worker.communicate(timeout=120) for worker in workers]
    for (out, err), worker in zip(outputs, workers, strict=True):
        assert worker.returncode == 0, err
        assert out.strip() == "[0, 4]"
