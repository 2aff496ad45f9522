"""Model FLOP utilisation of a training step: FLOPs of the mathematics over those of the device.

Counted are the products of matrices alone, 2 m n k for (m, k) by (k, n); forward once, backward
twice that (the gradients of both factors). What is computed again for activation checkpointing is
not counted, nor is anything of the optimizer. For one image, with T tokens, width D, MLP hidden
width H, M parts of modulation (6, or 4 without shift), patches of P = p p C numbers:

    patch embedding    2 T P D
    time embedding     2 (256 D + D D)
    each block         2 T D 3D + 2 T T D + 2 T T D + 2 T D D     qkv, scores, values, projection
                       + 4 T D H, or 6 T D H for SwiGLU           MLP
                       + 2 D M D                                  modulation
    each head          2 T D P + 2 D 2D

The script checks this against `torch.utils.flop_counter` on small models before it measures.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.subjects import DIGITS, RandomData
from benchmarks.timing import parser, prepare
from benchmarks.training_step import our_steps
from benchmarks.usual import with_plain_attention
from ig_core.config import LossConfig, ModelConfig, model_config
from ig_core.layers import TIME_FEATURES
from ig_core.loss import ig_loss
from ig_core.transformer import DiffusionTransformer

PEAKS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}
"""Dense bf16 TFLOP/s by what the device's name contains."""
TOLERANCE = 0.01


def forward_flops(config: ModelConfig) -> int:
    """FLOPs of one image's forward pass with all heads; the formula is the module's."""
    tokens, width = config.grid_size**2, config.width
    patch = config.patch_size**2 * config.in_channels
    hidden = int(width * config.mlp_ratio)
    per_hidden, hidden = (6, int(2 / 3 * hidden)) if config.swiglu else (4, hidden)
    mlp = per_hidden * tokens * width * hidden
    parts = 6 if config.adaln_shift else 4
    attention = 8 * tokens * width**2 + 4 * tokens**2 * width
    block = attention + mlp + 2 * parts * width**2
    head = 2 * tokens * width * patch + 4 * width**2
    embeddings = 2 * tokens * patch * width + 2 * (TIME_FEATURES * width + width**2)
    heads = 1 if config.aux_layer is None else 2
    return embeddings + config.depth * block + heads * head


def training_flops(config: ModelConfig, batch: int) -> int:
    """FLOPs of a training step, three forward passes' worth."""
    return 3 * batch * forward_flops(config)


def counted_flops(config: ModelConfig, batch: int) -> int:
    """FLOPs of forward and backward as torch counts them."""
    # Attention written out: torch counts its own backward with the scores computed a second time.
    model = with_plain_attention(DiffusionTransformer(config))
    x, y = RandomData(config, batch).batch(torch.arange(batch))
    counter = FlopCounterMode(display=False)
    with counter:
        ig_loss(model, x, y, torch.rand(batch), torch.randn_like(x), LossConfig()).total.backward()
    return counter.get_total_flops()


def check_formula() -> float:
    """Assert that the formula holds for small models of both families; its worst error."""
    light = replace(
        DIGITS,
        backbone="lightningdit",
        rope=True,
        rms_norm=True,
        swiglu=True,
        adaln_shift=False,
        patch_size=1,
    )
    errors = [
        abs(training_flops(config, 4) / counted_flops(config, 4) - 1)
        for config in (DIGITS, replace(DIGITS, aux_layer=None), light)
    ]
    assert max(errors) < TOLERANCE, f"FLOP formula is wrong by {max(errors):.1%}"
    return max(errors)


def peak_of(device: torch.device, given: float | None) -> float | None:
    """Peak TFLOP/s as given, or from the table; None if unknown."""
    if given is not None or device.type != "cuda":
        return given
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def main() -> None:
    """Command line."""
    arguments = parser(__doc__ or "")
    arguments.set_defaults(device="cuda")
    arguments.add_argument("--model", default="SiT-XL/2", help="or LightningDiT-XL/1, ...")
    arguments.add_argument("--batch", type=int, default=64)
    arguments.add_argument("--precision", choices=("float32", "bf16"), default="bf16")
    arguments.add_argument("--compile", action="store_true")
    arguments.add_argument("--activation-checkpointing", action="store_true")
    arguments.add_argument("--steps", type=int, default=20, help="timed steps")
    arguments.add_argument("--peak-tflops", type=float, help="of the device, in the precision")
    args = arguments.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print("No CUDA device: nothing measured (--device cpu measures a tiny model instead).")
        return
    timer = prepare(args)
    device = timer.device
    print(f"FLOP formula within {check_formula():.2%} of torch's counter")
    config, name = model_config(args.model), args.model
    if device.type == "cpu":
        config, name, args.precision = DIGITS, "a tiny model (no GPU)", "float32"
    step = our_steps(
        config,
        args.batch,
        device,
        precision=args.precision,
        compiled=args.compile,
        checkpointing=args.activation_checkpointing,
    )
    timing = timer.interleave({"step": step}, max(args.steps, 2), warmup=5)
    flops = training_flops(config, args.batch)
    achieved = flops / timing["step"].seconds / 1e12
    print(
        f"{name}, batch {args.batch}, {args.precision}: {flops / 1e12:.4g} TFLOP and "
        f"{1e3 * timing['step'].seconds:.1f} ms a step, {achieved:.4g} TFLOP/s"
    )
    peak = peak_of(device, args.peak_tflops)
    if peak is None:
        print("peak unknown: give --peak-tflops for the utilisation")
    else:
        print(f"MFU {achieved / peak:.1%} of {peak:g} TFLOP/s")


if __name__ == "__main__":
    main()
