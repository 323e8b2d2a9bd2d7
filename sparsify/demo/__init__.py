"""The main job on real data, end to end, with a report."""

from sparsify.demo.run import run_demo

__all__ = ["run_demo"]
