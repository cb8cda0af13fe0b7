"""Decisions about a compression before its first forward pass, from settings and the model."""

from __future__ import annotations

from intraslice_core.allocation.budget import compression_budget, resolve_round_to
from intraslice_core.allocation.estimators import GRADIENT_SHARE
from intraslice_core.allocation.rounding import require_rounding
from intraslice_core.allocation.shapes import SENSITIVITY_SHARE, AllocationContext
from intraslice_core.calibration import text_prefix
from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.config import CompressionConfig
from intraslice_core.device import resolve_device, resolve_dtype, rounding_class
from intraslice_core.device_memory import BatchSize
from intraslice_core.export.form import require_expressible
from intraslice_core.export.gguf_vocabulary import read_vocabulary
from intraslice_core.export.targets import require_target
from intraslice_core.families.wrappers import require_wrapper_budget
from intraslice_core.layer_loop import CompressionWork
from intraslice_core.methods import refit_warnings
from intraslice_core.progress import Stage
from intraslice_core.rank_connection import of_largest_share, require_sequences
from intraslice_core.residency import place_hidden_states
from intraslice_core.run import OpenedModel, Run
from intraslice_core.statistics_cache import ModelStatistics
from intraslice_core.tokenizer import load_tokenizer


def plan_work(
    reader: CheckpointReader, dense: OpenedModel, config: CompressionConfig, run: Run
) -> CompressionWork:
    """Return an opened model with every decision about its compression, on each rank.

    Raises:
        ConfigurationError: if the settings do not suit the model, naming the field.
    """
    geometry = reader.family.geometry(reader.config)
    canonical = reader.family.canonical_settings(reader.config)
    demands = require_target(config, dense.target_type(config.target, reader.family.model_type))
    require_wrapper_budget(config, dense.wrapper_table)
    if config.target != "research":
        require_expressible(reader.family, reader.config, demands, config)
    if config.gguf_formats:
        vocabulary = read_vocabulary(dense.directory, canonical["vocab_size"], adds_bos=False)
        run.warnings += [] if vocabulary.caveat is None else [vocabulary.caveat]
    run.warnings += refit_warnings(config.method, output_norms=canonical["output_norms"])
    require_sequences(run.ranks, config)
    device = resolve_device(run.ranks.device_name(config.device))
    budget = compression_budget(config, geometry, reader.dtype.itemsize)
    require_rounding(config, geometry, budget, demands.shapes)
    config = config.model_copy(update={"round_to": resolve_round_to(config, geometry)})
    dtype = resolve_dtype(config.dtype, device, reader.dtype)
    digest = dense.fingerprint if run.statistics_cache or run.resume_state else ""
    statistics = None
    if run.statistics_cache is not None:
        facts = {"model": digest, "place": rounding_class(device), "dtype": str(dtype)}
        statistics = ModelStatistics(cache=run.statistics_cache, facts=facts)
    items = (dtype.itemsize, reader.dtype.itemsize)
    share = of_largest_share(run.ranks, config)
    processes = run.ranks.count
    placement = place_hidden_states(geometry, share, device, items, run.offload_dir, processes)
    if placement.message is not None:
        run.report(Stage.LOAD, placement.message)
    # Alike on all ranks: which of them factorises then makes no difference to the rounding.
    in_place = any(run.ranks.gathered(lambda: placement.in_place))
    return CompressionWork(
        reader=reader,
        config=config,
        canonical=canonical,
        target_type=dense.target_type(config.target, reader.family.model_type),
        geometry=geometry,
        budget=budget,
        device=device,
        dtype=dtype,
        stored_dtype=reader.dtype,
        fingerprint=digest,
        prefix=text_prefix(load_tokenizer(dense.directory)),
        statistics=statistics,
        resume_state=run.resume_state,
        memory=placement.memory,
        batch=BatchSize(requested=config.batch_size, ranks=run.ranks),
        in_place=in_place,
        ranks=run.ranks,
    )


def allocation_context(work: CompressionWork, run: Run) -> AllocationContext:
    """Return the inputs of the choice of shapes."""
    expected, ends = run.durations, (GRADIENT_SHARE * SENSITIVITY_SHARE, SENSITIVITY_SHARE)

    def time_done(done: float) -> float:
        return done if expected is None else expected.allocation.finished(done, ends)

    def before_batch(done: float, message: str, layer: int | None = None, /) -> None:
        layers = None if layer is None else work.geometry.num_hidden_layers
        run.report(Stage.ALLOCATE, message, time_done(done), layer, layers)

    def on_resumed(begin: float, end: float) -> None:
        run.skip(Stage.ALLOCATE, time_done(end) - time_done(begin))

    return AllocationContext(
        layers=work.layers,
        config=work.config,
        demands=require_target(work.config, work.target_type),
        geometry=work.geometry,
        budget=work.budget,
        device=work.device,
        stored_dtype=work.stored_dtype,
        cache=run.sensitivity_cache,
        key=work.key,
        batch=work.batch,
        resume_state=work.resume_state,
        prefix_length=len(work.prefix),
        before_batch=before_batch,
        on_resumed=on_resumed,
        warn=run.warn,
    )
