"""The program of a sweep's worker processes: `python -m sparsify.sweep_worker`, spoken to in JSON lines."""

from __future__ import annotations

import json
import logging

from sparsify.studies import dense_trace
from sparsify.train import load_data
from sparsify.train.sweep_cells import Training, sampled, set_threads
from sparsify.train.sweep_workers import serve, take_streams


def main() -> None:
    """Reads the setup, then runs cells until there are no more."""
    set_threads(1)
    logging.disable(logging.WARNING)
    cells, answers = take_streams()
    first = cells.readline()
    if not first:
        return
    setup = json.loads(first)
    training = Training.from_json(setup["training"])
    data = sampled(load_data(setup["data"], sequence_length=training.sequence_length), training.test_examples)
    variants = training.variants(dense_trace(setup["model"]))
    serve(variants, data, training, cells, answers)


if __name__ == "__main__":
    main()
