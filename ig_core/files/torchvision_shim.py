"""Let torch-fidelity import on a CPU-only torch.

torch-fidelity imports torchvision, whose wheel from the package index is built against CUDA torch.
On a CPU-only torch its compiled operators do not load, and `import torchvision` then fails because
it registers fake kernels for `nms` and `qnms`, which nobody declared. Declaring the two (without
an implementation: nothing here calls them) lets the import pass. Where the operators exist, as
with matching builds, nothing happens.
"""

from __future__ import annotations

import importlib.util

import torch

_declared: list[torch.library.Library] = []  # a Library takes its operators along when collected


def declare_missing_operators() -> None:
    """Declare torchvision's operators if its own library cannot; call before importing it."""
    if _declared or importlib.util.find_spec("torchvision") is None:
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)
