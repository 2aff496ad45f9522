"""Memory that runs out: one line that names what mends it, whoever ran out of it."""

from __future__ import annotations

import errno
import pickle

import pyarrow
import pytest
import ray.exceptions
import torch

from experiments import Resources, experiment_to_json
from pipelines.__main__ import main
from pipelines.commands import run as experiment_run
from pipelines.common.errors import ArtifactError, MemoryExhaustedError, WorkerLostError
from pipelines.common.memory import explaining_memory
from tests.pipelines.conftest import run_inline, tiny

CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't "
    "allocate memory: you tried to allocate 4398046511104 bytes."
)


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


RAN_OUT = [
    MemoryError(),
    CPU,
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when"),
    pyarrow.ArrowMemoryError("malloc of size 9 failed"),
    OSError(errno.ENOMEM, "Cannot allocate"),
    ray.exceptions.OutOfMemoryError("Task was killed due to the node running low on memory."),
    caused(WorkerLostError("a worker was lost"), ray.exceptions.OutOfMemoryError("low on memory")),
    caused(ArtifactError("could not be made"), OSError(errno.ENOMEM, "Cannot allocate memory")),
    WorkerLostError("training workers were lost: rank 1: CUDA out of memory"),
]


@pytest.mark.parametrize("error", RAN_OUT, ids=repr)
@pytest.mark.parametrize(
    ("kind", "option"),
    [
        ("checkpoint", "--resources.micro-batch"),
        ("images", "--resources.sample-batch"),
        ("latents", "--resources.sample-tasks"),
    ],
)
def test_memory_that_ran_out_is_one_line_with_what_mends_it(error, kind, option):
    with (
        pytest.raises(MemoryExhaustedError, match=f"memory ran out on .*{option}") as caught,
        explaining_memory(kind, Resources()),
        explaining_memory(kind, Resources()),
    ):
        raise error
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).count("memory ran out") == 1
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shapes do not fit"),
        ValueError("out of memory"),
        OSError(errno.ENOSPC, "full"),
        WorkerLostError("a worker was lost"),
    ],
)
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as caught, explaining_memory("images", Resources()):
        raise error
    assert caught.value is error


def fail(*_, **__):
    raise CPU


@pytest.mark.parametrize(
    ("place", "option"),
    [
        ("ig_core.training.loop.train", "--resources.micro-batch"),
        ("pipelines.stages.sample.build_images", "--resources.sample-batch"),
    ],
)
def test_training_and_sampling_say_what_to_ask_less_for(
    place, option, tmp_path, store, monkeypatch
):
    monkeypatch.setattr(place, fail)
    with pytest.raises(MemoryExhaustedError, match=f"DefaultCPUAllocator.*{option}"):
        run_inline(store, tiny(train={"steps": 30}))


def test_the_program_itself_ends_with_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experiment_run, "run_experiment", fail)
    path = tmp_path / "experiment.json"
    path.write_text(experiment_to_json(tiny()), encoding="utf-8")
    assert main(["run", str(path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("igdit: memory ran out")
    monkeypatch.setenv("IGDIT_DEBUG", "1")
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        main(["run", str(path)])
