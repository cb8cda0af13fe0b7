"""Operations and bytes of compressing large Llamas, computed from their shapes alone."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from intraslice_core.config import CompressionConfig
from intraslice_core.cost_model import StageFlops, gpu_host_bytes, stage_bytes, stage_flops
from intraslice_core.plan import ModelGeometry

LLAMAS = {
    "Llama-3-8B": ModelGeometry(
        num_hidden_layers=32,
        hidden_size=4096,
        intermediate_size=14336,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=128256,
        tie_word_embeddings=False,
    ),
    "Llama-3-70B": ModelGeometry(
        num_hidden_layers=80,
        hidden_size=8192,
        intermediate_size=28672,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=128256,
        tie_word_embeddings=False,
    ),
}


def work_over_forward(flops: StageFlops) -> float:
    """Return the operations of a compression over those of the forward passes."""
    return (flops.allocate + flops.compress) / flops.forward


def llama_ratios(ratio: float) -> dict[str, float]:
    """Return `work_over_forward` of every Llama, calibrated as by default."""
    config = CompressionConfig(ratio=ratio)
    return {name: work_over_forward(stage_flops(shape, config)) for name, shape in LLAMAS.items()}


def print_operations(name: str, geometry: ModelGeometry, config: CompressionConfig) -> None:
    """Print the operations by stage of one model as measured and of the Llamas by default."""
    table = Table("", name, *LLAMAS, title="TFLOP, from shapes")
    large = CompressionConfig(ratio=config.ratio)  # 128 x 2048 tokens, as by default
    flops = [stage_flops(geometry, config), *(stage_flops(s, large) for s in LLAMAS.values())]
    for part in StageFlops.model_fields:
        table.add_row(part, *(f"{getattr(model, part) / 1e12:,.1f}" for model in flops))
    table.add_row("total over forward", *(f"{work_over_forward(model):.2f}" for model in flops))
    Console().print(table)


def print_memory(ratio: float) -> None:
    """Print the peak bytes of every stage of the Llamas in bfloat16."""
    kinds = ("host", "device", "device, in place")
    table = Table("stage", *(f"{name} {kind}" for name in LLAMAS for kind in kinds))
    large = CompressionConfig(ratio=ratio)
    sizes = [
        [stage_bytes(shape, large, 2, 2, in_place=in_place) for in_place in (False, True)]
        for shape in LLAMAS.values()
    ]
    for stage in sizes[0][0]:
        numbers = [
            number
            for copied, in_place in sizes
            for number in (copied[stage].host, copied[stage].device, in_place[stage].device)
        ]
        table.add_row(stage, *(f"{number / 2**30:.1f}" for number in numbers))
    hosts = [gpu_host_bytes(shape, large, 2, 2) / 2**30 for shape in LLAMAS.values()]
    table.caption = "host beside a GPU, with copies of hidden states and some layers: " + ", ".join(
        f"{name} {host:.1f}" for name, host in zip(LLAMAS, hosts, strict=True)
    )
    table.title = "GiB in bfloat16, at the peak of each stage"
    Console().print(table)
