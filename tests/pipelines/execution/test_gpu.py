"""The pipeline on GPUs: `pytest -m gpu` on a machine that has one, or several."""

import pytest
import torch

from tests.equipment.processes import kill_tree
from tests.pipelines.execution.test_ray import Run, events, fids

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_a_worker_on_each_gpu_then_samples_and_features(tmp_path, sharding):
    workers = torch.cuda.device_count()
    run = Run(
        tmp_path / "home",
        workers,
        "--resources.use-gpu",
        "--resources.compile-blocks",
        "--optim.precision",
        "bf16",
        "--resources.sharding",
        sharding,
    )
    try:
        run.finish()
    finally:
        kill_tree(run.process.pid)
    (training,) = events(run.store, "execute", "checkpoint")
    assert training["world_size"] == workers
    assert all(0 < fid < 1000 for fid in fids(run.store))
