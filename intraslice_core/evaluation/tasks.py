"""Zero-shot tasks of lm-evaluation-harness, scored on a loaded model.

The harness belongs to the extra `eval` and is imported only when a task is requested. It runs
installed code only: data sets bring no code (`datasets` no longer loads scripts), tasks that
execute model output are rejected, and a task name is never read as a path. The exception is
`include_path`: `!function` in its YAML files is Python code, so they must be the user's own.
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

from intraslice_core.device_memory import BatchSize
from intraslice_core.errors import (
    ConfigurationError,
    IntraSliceError,
    MissingExtraError,
    TaskDataError,
    TaskError,
    TaskNotFoundError,
)
from intraslice_core.progress import CancellationCheck, never_cancelled, raise_if_cancelled
from intraslice_core.tokenizer import embedding_rows, require_known_tokens

FIELD = "evaluation.tasks"

_BOOTSTRAP = 1000
"""Bootstrap samples for the standard error of a metric that is not a mean."""
_SEED = 1234
"""Random seed for selecting shots; the harness's own, so that scores agree with it."""
_MAX_NAMES = 5
"""Largest number of task names in an error message."""


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """Value of one metric of one task or group."""

    task: str
    metric: str
    higher_is_better: bool
    value: float
    stderr: float | None
    """Standard error; None where the harness reports none."""
    examples: int
    shots: int


@dataclass(frozen=True, kw_only=True)
class OpenedTasks:
    """Tasks with their examples, ready to score any number of models."""

    loaded: Mapping[str, Any]
    """The harness's own structure: `tasks`, `groups` and `group_map`."""
    limit: int | None
    """Number of examples per task; None uses all."""
    batch_size: int
    """Sequences per forward pass."""

    @property
    def examples(self) -> int:
        """Return the number of examples of all tasks."""
        counts = (len(task.eval_docs) for task in self.loaded["tasks"].values())
        return sum(count if self.limit is None else min(count, self.limit) for count in counts)


def require_harness() -> None:
    """Raise if the harness is missing, before any work is done.

    Raises:
        MissingExtraError: if lm-evaluation-harness is not installed.
    """
    missing = [package for package in ("lm_eval", "accelerate") if find_spec(package) is None]
    if missing:
        raise MissingExtraError(
            f"tasks need lm-evaluation-harness, but {' and '.join(missing)} cannot be imported",
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
    """Open tasks by name and read their examples.

    Args:
        names: names of tasks, groups or tags.
        include_path: directory of the user's task files, which may run code and take precedence.
        limit: number of examples per task; None uses all.
        shots: solved examples before each question; None uses each task's own number.
        batch_size: sequences per forward pass.

    Raises:
        MissingExtraError: if lm-evaluation-harness is not installed.
        TaskNotFoundError: if a name is unknown.
        TaskDataError: if examples can be read neither from the cache nor from their source.
        TaskError: if a task executes model output, or is requested twice.
        ConfigurationError: if `include_path` is not a directory.
    """
    require_harness()
    if include_path is not None and not include_path.is_dir():
        raise ConfigurationError(
            f"{include_path} is not a directory",
            field="include_path",
            hint="give a directory of task files",
        )
    with _isolated_harness():
        manager = _manager(names, include_path)
        _require_existing(names, manager.all_tasks)
        loaded = _read_examples(manager, names)
        for name, task in loaded["tasks"].items():
            if getattr(task, "UNSAFE_CODE", False):
                raise TaskError(
                    f"task {name} executes model output, which is not supported",
                    field=FIELD,
                    hint="remove it",
                )
            _set_shots(task, shots)
    return OpenedTasks(loaded=loaded, limit=limit, batch_size=batch_size)


def score_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: OpenedTasks,
    *,
    should_cancel: CancellationCheck = never_cancelled,
) -> tuple[TaskScore, ...]:
    """Score a model on opened tasks.

    Args:
        model: a causal language model, on its device; left in evaluation mode.
        tokenizer: the model's tokenizer.
        tasks: opened tasks, which may be reused for the next model.
        should_cancel: called before each forward pass.

    Returns:
        The finite metrics of each task. A group with metrics of its own replaces its members.

    Raises:
        TaskError: if the harness cannot score a task on this model.
        TokenizerError: if an example contains a token that the model has no embedding for.
        OutOfDeviceMemoryError: if a single example does not fit the device.
        CompressionCancelledError: if the run is cancelled.
    """
    passes = _PassHooks(should_cancel, tokenizer)
    size = BatchSize(
        requested=tasks.batch_size,
        setting="the number of examples per forward pass",
        lower=FIELD,
    )
    hooks = (
        model.register_forward_pre_hook(passes.before, with_kwargs=True),
        model.register_forward_hook(passes.after),
    )
    try:
        results = size.repeat(
            lambda examples: _evaluate(model, tokenizer, tasks, examples), undo=passes.after
        )
    except IntraSliceError:
        raise
    except (AssertionError, KeyError, NotImplementedError, TypeError, ValueError) as error:
        if passes.in_progress:  # the model failed, not the task
            raise
        # A task file that needs what its data or this kind of model does not have.
        raise TaskError(
            f"{_list_names(list(tasks.loaded['tasks']))} cannot be scored: {_first_line(error)}",
            field=FIELD,
            hint="check the task file against its data",
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(_scores(results))


def _evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: OpenedTasks,
    batch_size: int,
) -> Mapping[str, Any]:
    """Run the harness and return its results."""
    with _isolated_harness():
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        for task in tasks.loaded["tasks"].values():
            task.set_fewshot_seed(seed=_SEED)  # otherwise the next model sees other shots
        results: Mapping[str, Any] = evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
            dict(tasks.loaded),
            limit=tasks.limit,
            bootstrap_iters=_BOOTSTRAP,
            log_samples=False,
        )
    return results


@dataclass
class _PassHooks:
    """Forward hooks that check for cancellation and tell model errors from task errors."""

    should_cancel: CancellationCheck
    tokenizer: PreTrainedTokenizerBase
    in_progress: bool = False

    def before(self, model: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """Check for cancellation and unknown tokens, and mark the start of a forward pass."""
        raise_if_cancelled(self.should_cancel)
        tokens = arguments[0] if arguments else named.get("input_ids")
        if tokens is not None:
            require_known_tokens(tokens, embedding_rows(model), self.tokenizer, "a task")
        self.in_progress = True

    def after(self, *_: Any) -> None:
        """Mark the end of a forward pass."""
        self.in_progress = False


# -- the harness -----------------------------------------------------------------------------


def _manager(names: Sequence[str], include_path: Path | None) -> Any:
    """Return the harness's task registry.

    Its own 14,000 tasks take ten seconds to list, so they are listed only where `include_path`
    does not define all the names.
    """
    from lm_eval.tasks import TaskManager

    if include_path is not None:
        user_tasks = TaskManager(include_path=str(include_path), include_defaults=False)
        if set(names) <= set(user_tasks.all_subtasks):
            return user_tasks
    return TaskManager(include_path=None if include_path is None else str(include_path))


def _require_existing(names: Sequence[str], existing: Sequence[str]) -> None:
    """Raise if a name is not registered, because the harness would read it as a task file's path.

    Raises:
        TaskNotFoundError: with the unknown names.
    """
    unknown = [name for name in names if name not in set(existing)]
    if unknown:
        raise TaskNotFoundError(
            f"no such task: {_list_names(unknown)}",
            field=FIELD,
            hint="`lm-eval ls tasks` lists all names; --include-path adds your own task files",
        )


def _list_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more


def _read_examples(manager: Any, names: Sequence[str]) -> dict[str, Any]:
    """Read the examples from the cache or, with a network, from their source.

    Raises:
        MissingExtraError: if a task needs a package that is not installed.
        TaskError: if a task is requested twice.
        TaskDataError: if the examples cannot be read.
    """
    try:
        loaded: dict[str, Any] = manager.load(list(dict.fromkeys(names)))
    except ImportError as error:
        raise MissingExtraError(
            f"a task of {_list_names(names)} needs a package that is not installed: {error}",
            field=FIELD,
            hint="install the package where the evaluation runs",
        ) from error
    except Exception as error:  # of many libraries
        if str(error).startswith("Duplicate task"):
            raise TaskError(str(error), field=FIELD, hint="name it once") from error
        raise TaskDataError(
            f"the examples of {_list_names(names)} cannot be read: {_first_line(error)}",
            field=FIELD,
            hint="without a network, download them into the cache of `datasets` first",
        ) from error
    return loaded


def _first_line(error: BaseException) -> str:
    """Return the first line of an error's message, at most 300 characters."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _set_shots(task: Any, shots: int | None) -> None:
    """Set the number of shots, except for a task that sets 0 itself."""
    own_shots = task.get_config("num_fewshot")
    if own_shots is None or (shots is not None and own_shots != 0):
        task.set_config(key="num_fewshot", value=shots or 0)


@contextlib.contextmanager
def _isolated_harness() -> Iterator[None]:
    """Keep the harness's output off stdout and keep it from forking this process."""
    log = logging.getLogger("lm_eval")
    level, disable_multiproc = log.level, os.environ.get("DISABLE_MULTIPROC")
    log.setLevel(logging.ERROR)
    # The harness draws bootstrap samples in forked processes, each of which would hold the model.
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        log.setLevel(level)
        if disable_multiproc is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = disable_multiproc


# -- the harness's results -------------------------------------------------------------------


def _scores(results: Mapping[str, Any]) -> Iterator[TaskScore]:
    """Yield the scores of all tasks and groups, without members of groups that have metrics."""
    groups: Mapping[str, Any] = results.get("groups") or {}
    members = _members(groups, results["group_subtasks"])
    for name, values in results["results"].items():
        if name not in members:
            yield from _metrics(name, values, results)


def _members(groups: Mapping[str, Any], children: Mapping[str, Sequence[str]]) -> set[str]:
    """Return all direct and indirect members of groups that have metrics of their own."""
    members: set[str] = set()
    pending = [child for name in groups for child in children.get(name, ())]
    while pending:
        name = pending.pop()
        if name not in members:
            members.add(name)
            pending += children.get(name, ())
    return members


def _metrics(
    name: str, values: Mapping[str, Any], results: Mapping[str, Any]
) -> Iterator[TaskScore]:
    """Yield a task's finite metrics, from the keys `metric,filter` and `metric_stderr,filter`."""
    higher_is_better = results["higher_is_better"].get(name, {})
    shots = results["n-shot"].get(name, 0)
    for key, entry in values.items():
        metric, comma, filter_name = key.partition(",")
        value = _finite(entry)
        if not comma or metric.endswith("_stderr") or value is None:
            continue
        yield TaskScore(
            task=name,
            metric=metric if filter_name == "none" else key,
            higher_is_better=higher_is_better.get(metric) is not False,
            value=value,
            stderr=_finite(values.get(f"{metric}_stderr,{filter_name}")),
            examples=values["sample_len"],
            shots=shots if isinstance(shots, int) else 0,
        )


def _finite(value: Any) -> float | None:
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return None
