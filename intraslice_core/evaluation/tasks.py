"""Zero-shot tasks of lm-evaluation-harness, on a model that is loaded already.

The harness is an extra and is imported when a task is asked for. What it may run is what is
installed: data sets bring no code (`datasets` has stopped reading any), tasks that execute what a
model writes are refused, and a name never means a path. The YAML files of an `include_path` are
another matter: `!function` in them is Python, so they must be the user's own.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from intraslice_core.errors import (
    ConfigurationError,
    IntraSliceError,
    MissingExtraError,
    TaskDataError,
    TaskError,
    TaskNotFoundError,
)
from intraslice_core.progress import CancellationCheck, never_cancelled, raise_if_cancelled

FIELD = "evaluation.tasks"

_BOOTSTRAP = 1000
"""Draws for the error of a metric that is no mean."""
_SEED = 1234
"""Of the choice of shots: the harness's own, so that its numbers are ours."""
_NAMED_AT_MOST = 5


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """One metric of one task or group; `stderr` is None where the harness knows none."""

    task: str
    metric: str
    higher_is_better: bool
    value: float
    stderr: float | None
    examples: int
    shots: int


@dataclass(frozen=True, kw_only=True)
class OpenedTasks:
    """Tasks with their examples, to be put to any number of models."""

    loaded: Mapping[str, Any]
    """As the harness holds them: `tasks`, `groups` and `group_map`."""
    limit: int | None
    """Examples of each task; None is all."""
    batch_size: int
    """Sequences a forward pass."""


def require_harness() -> None:
    """Refuse what cannot be measured before any work is done.

    Raises:
        MissingExtraError: if lm-evaluation-harness is not installed.
    """
    if find_spec("lm_eval") is None or find_spec("accelerate") is None:
        raise MissingExtraError(
            "tasks need lm-evaluation-harness, which is not installed",
            field=FIELD,
            hint='pip install "intraslice[eval]"',
        )


def open_tasks(
    names: Sequence[str],
    *,
    include_path: Path | None = None,
    limit: int | None = None,
    shots: int | None = None,
    batch_size: int = 8,
) -> OpenedTasks:
    """Find tasks by name and read their examples.

    Args:
        names: of tasks, groups or tags.
        include_path: a directory of the user's task files, which may run code and take precedence.
        limit: examples of each task; all by default.
        shots: solved examples before each question; each task's own number by default.
        batch_size: sequences a forward pass.

    Raises:
        MissingExtraError: if lm-evaluation-harness is not installed.
        TaskNotFoundError: if a name is unknown.
        TaskDataError: if examples can be read neither from a cache nor from where they come.
        TaskError: if a task executes what a model writes, or is asked for twice.
        ConfigurationError: if the directory is none.
    """
    require_harness()
    if include_path is not None and not include_path.is_dir():
        raise ConfigurationError(f"{include_path} is no directory", field="include_path")
    with _apart():
        manager = _manager(names, include_path)
        _require_known(names, manager.all_tasks)
        loaded = _read_examples(manager, names)
        for name, task in loaded["tasks"].items():
            if getattr(task, "UNSAFE_CODE", False):
                raise TaskError(f"{name} executes what the model writes", field=FIELD)
            _show(task, shots)
    return OpenedTasks(loaded=loaded, limit=limit, batch_size=batch_size)


def score_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: OpenedTasks,
    *,
    should_cancel: CancellationCheck = never_cancelled,
) -> tuple[TaskScore, ...]:
    """Put the questions to the model.

    Args:
        model: a causal language model, on its device; left in evaluation mode.
        tokenizer: the model's.
        tasks: what was opened; may be put to the next model.
        should_cancel: asked before each forward pass.

    Returns:
        The finite metrics of each task and of each group that has some of its own; of the latter
        the members are left out.

    Raises:
        TaskError: if the harness cannot put a task to this model.
        CompressionCancelledError: if asked to stop.
    """
    passes = _Passes(should_cancel)
    hooks = (
        model.register_forward_pre_hook(passes.before),
        model.register_forward_hook(passes.after),
    )
    try:
        with _apart():
            from lm_eval.evaluator import evaluate
            from lm_eval.models.huggingface import HFLM

            for task in tasks.loaded["tasks"].values():
                task.set_fewshot_seed(seed=_SEED)  # else the second model sees other shots
            results = evaluate(
                HFLM(pretrained=model, tokenizer=tokenizer, batch_size=tasks.batch_size),
                dict(tasks.loaded),
                limit=tasks.limit,
                bootstrap_iters=_BOOTSTRAP,
                log_samples=False,
            )
    except IntraSliceError:
        raise
    except (AssertionError, KeyError, NotImplementedError, TypeError, ValueError) as error:
        if passes.inside:  # the model's own fault, and no task's
            raise
        # A task file that asks for what its data or this kind of model does not have.
        raise TaskError(f"the tasks cannot be scored: {_reason(error)}", field=FIELD) from error
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(_scores(results))


@dataclass
class _Passes:
    """Forward passes: each may be the last, and an error within one is the model's."""

    should_cancel: CancellationCheck
    inside: bool = False

    def before(self, *_: Any) -> None:
        """Hook: a pass begins."""
        raise_if_cancelled(self.should_cancel)
        self.inside = True

    def after(self, *_: Any) -> None:
        """Hook: it has ended."""
        self.inside = False


# -- the harness -----------------------------------------------------------------------------


def _manager(names: Sequence[str], include_path: Path | None) -> Any:
    """Knows the tasks; the harness's own 14,000 take ten seconds, and are read if asked for."""
    from lm_eval.tasks import TaskManager

    if include_path is not None:
        own = TaskManager(include_path=str(include_path), include_defaults=False)
        if set(names) <= set(own.all_subtasks):
            return own
    return TaskManager(include_path=None if include_path is None else str(include_path))


def _require_known(names: Sequence[str], known: Sequence[str]) -> None:
    """The harness itself takes a name that it does not know for a path of a task file."""
    unknown = [name for name in names if name not in set(known)]
    if unknown:
        raise TaskNotFoundError(
            f"no such task: {', '.join(unknown[:_NAMED_AT_MOST])}",
            field=FIELD,
            hint="`lm-eval ls tasks` lists all; a task file of yours is found by --include-path",
        )


def _read_examples(manager: Any, names: Sequence[str]) -> dict[str, Any]:
    """With the network where there is one; the errors are of many libraries."""
    try:
        loaded: dict[str, Any] = manager.load(list(dict.fromkeys(names)))
    except ImportError as error:
        raise MissingExtraError(f"a task needs more: {error}", field=FIELD) from error
    except Exception as error:
        if str(error).startswith("Duplicate task"):
            raise TaskError(str(error), field=FIELD, hint="name it once") from error
        raise TaskDataError(
            f"the examples of {', '.join(names[:_NAMED_AT_MOST])} cannot be read: {_reason(error)}",
            field=FIELD,
            hint="where there is no network, download them before into the data sets' cache",
        ) from error
    return loaded


def _reason(error: BaseException) -> str:
    """One line of what may be many."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _show(task: Any, shots: int | None) -> None:
    """As many solved examples as asked for; a task that has set 0 itself knows why."""
    own = task.get_config("num_fewshot")
    if own is None or (shots is not None and own != 0):
        task.set_config(key="num_fewshot", value=shots or 0)


@contextlib.contextmanager
def _apart() -> Iterator[None]:
    """Keep the harness's chatter from our results, and its processes from our memory."""
    log = logging.getLogger("lm_eval")
    level, several = log.level, os.environ.get("DISABLE_MULTIPROC")
    log.setLevel(logging.ERROR)
    # It draws its bootstrap samples in forks, each of which would hold the model.
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        log.setLevel(level)
        if several is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = several


# -- its results -----------------------------------------------------------------------------


def _scores(results: Mapping[str, Any]) -> Iterator[TaskScore]:
    groups: Mapping[str, Any] = results.get("groups") or {}
    members = _members(groups, results["group_subtasks"])
    for name, values in results["results"].items():
        if name not in members:
            yield from _metrics(name, values, results)


def _members(groups: Mapping[str, Any], children: Mapping[str, Sequence[str]]) -> set[str]:
    """Whatever is below a group that has metrics of its own."""
    found: set[str] = set()
    ask = [child for name in groups for child in children.get(name, ())]
    while ask:
        name = ask.pop()
        if name not in found:
            found.add(name)
            ask += children.get(name, ())
    return found


def _metrics(
    name: str, values: Mapping[str, Any], results: Mapping[str, Any]
) -> Iterator[TaskScore]:
    """From `acc,none`, `acc_stderr,none` and the like; the second part names a filter."""
    better = results["higher_is_better"].get(name, {})
    shots = results["n-shot"].get(name, 0)
    for key, value in values.items():
        metric, comma, kept = key.partition(",")
        found = _finite(value)
        if not comma or metric.endswith("_stderr") or found is None:
            continue
        yield TaskScore(
            task=name,
            metric=metric if kept == "none" else key,
            higher_is_better=better.get(metric) is not False,
            value=found,
            stderr=_finite(values.get(f"{metric}_stderr,{kept}")),
            examples=values["sample_len"],
            shots=shots if isinstance(shots, int) else 0,
        )


def _finite(value: Any) -> float | None:
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return None
