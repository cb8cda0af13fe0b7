"""Gradients of the language-model loss at every module's output (docs/method.md, section 4).

One layer's graph is in memory at a time. The forward pass stores the hidden states before every
layer; the backward pass recomputes each layer from them with gradients enabled.
Only second moments of the gradients are kept:

* `G = E[g gᵀ]` of the gradient at the contributions of attention and MLP to the residual stream:
  the empirical Fisher matrix, which converts output errors into loss;
* for the estimator of arXiv 2602.01975, the gradient of a mask on the inner activations,
  `Σ o ∘ ∂L/∂o`, by group of sequences. For heads, all products of two dimensions of a head are
  kept, so that the gradients can be rotated into the PCA basis later.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from intraslice_core import decoder_layer
from intraslice_core.checkpoints.dense_model import DenseLayers
from intraslice_core.decoder_layer import LayerSettings, LayerWeights, Rotary
from intraslice_core.errors import NumericalError
from intraslice_core.files import atomic_file
from intraslice_core.linalg import WORKING_DTYPE
from intraslice_core.plan import Module
from intraslice_core.statistics import prefix_scale, scaled, second_moment_sum
from intraslice_core.transfers import zipped_batches

_log = logging.getLogger(__name__)

GROUP_SEQUENCES = 8
"""Number of sequences whose gradients are summed before squaring, as in arXiv 2602.01975."""

GRADIENTS_NAME = "gradients-"
"""Start of the names of the files of `GradientFiles`, after their prefix."""
_KEY, _PARTS = "key", "parts"
"""Facts of a file that resumes."""
_TOKENS_AT_ONCE = 1024
"""Tokens in a layer's graph at once, at least one sequence.

The graph stores many times a token's hidden state.
"""


@dataclass(frozen=True, kw_only=True)
class LayerGradients:
    """Second moments of one layer's gradients."""

    attention: Tensor
    """`G` at the attention's contribution, mean per token, (hidden_size, hidden_size), float64."""
    mlp: Tensor
    """`G` at the MLP's contribution, mean per token, (hidden_size, hidden_size), float64."""
    head_masks: Tensor
    """`Σ_t o_i ∂L/∂o_j` of each head by group of sequences, (groups, heads, v_head_dim, same)."""
    neuron_masks: Tensor
    """`Σ_t u_j ∂L/∂u_j` by group of sequences, (groups, intermediate_size)."""
    head_moments: Tensor
    """`E[o oᵀ]` of each head, (heads, v_head_dim, same)."""
    tokens: int
    """Number of tokens averaged over."""

    def joined(self, other: LayerGradients, *, continues_group: bool = False) -> LayerGradients:
        """Return the gradients over the tokens of both.

        Args:
            other: gradients of further tokens.
            continues_group: add the masks of `other` to the last group, of which it is a part.
        """
        total = self.tokens + other.tokens
        share, other_share = self.tokens / total, other.tokens / total

        def grouped(masks: Tensor, further: Tensor) -> Tensor:
            if continues_group:
                return torch.cat((masks[:-1], masks[-1:] + further))
            return torch.cat((masks, further))

        return LayerGradients(
            attention=share * self.attention + other_share * other.attention,
            mlp=share * self.mlp + other_share * other.mlp,
            head_masks=grouped(self.head_masks, other.head_masks),
            neuron_masks=grouped(self.neuron_masks, other.neuron_masks),
            head_moments=share * self.head_moments + other_share * other.head_moments,
            tokens=total,
        )


@dataclass(frozen=True, kw_only=True)
class GradientFiles:
    """Gradients of all layers, one file per layer: in memory they would exceed the model's size.

    With a key an interrupted pass resumes: each file is replaced atomically and records how many
    parts of the pass it holds. A pass adds its parts in order, from the last layer to the first, so
    that after an interruption the last layers hold one part more than the others.
    """

    directory: Path
    prefix: str = ""
    """Prefix of the names of the files."""
    key: str = ""
    """Digest of everything that the gradients depend on; without it nothing resumes."""

    def add(
        self, layer: int, gradients: LayerGradients, *, part: int = 0, continues_group: bool = False
    ) -> None:
        """Add gradients of further tokens to the layer's file; see `LayerGradients.joined`.

        Args:
            layer: number of the layer.
            gradients: of a part of the pass.
            part: number of the part, from 0; with a key, parts that the file holds are left out.
            continues_group: see `LayerGradients.joined`.
        """
        file, joined, parts = self._file(layer), gradients, self.parts(layer)
        if self.key and parts > part:
            return
        is_begun = parts > 0 if self.key else file.exists()
        if is_begun:
            joined = self.read(layer).joined(gradients, continues_group=continues_group)
        tensors = {
            "attention": joined.attention,
            "mlp": joined.mlp,
            "head_masks": joined.head_masks,
            "neuron_masks": joined.neuron_masks,
            "head_moments": joined.head_moments,
            "tokens": torch.tensor(joined.tokens),
        }
        self.directory.mkdir(parents=True, exist_ok=True)
        if not self.key:
            save_file(tensors, file)
            return
        with atomic_file(file) as partial:
            save_file(tensors, partial, {_KEY: self.key, _PARTS: str(part + 1)})
            with partial.open("rb") as written:
                os.fsync(written.fileno())

    def parts(self, layer: int) -> int:
        """Return the parts of the pass in a layer's file; 0 without a key or a usable file."""
        if not self.key:
            return 0
        try:
            with safe_open(self._file(layer), framework="pt") as opened:
                facts: dict[str, str] = opened.metadata() or {}
        except FileNotFoundError:
            return 0
        except SafetensorError as error:
            _log.warning("%s is damaged and is not used: %s", self._file(layer), error)
            return 0
        return int(facts[_PARTS]) if facts.get(_KEY) == self.key else 0

    def read(self, layer: int) -> LayerGradients:
        """Return one layer's gradients, on the CPU.

        Raises:
            FileNotFoundError: if the layer has no file.
        """
        # Copied: mapped tensors lie at addresses that depend on the header, and products of
        # operands with another alignment may round differently.
        tensors = {name: part.clone() for name, part in load_file(self._file(layer)).items()}
        tokens = int(tensors.pop("tokens"))
        return LayerGradients(**tensors, tokens=tokens)

    def files(self) -> list[Path]:
        """Return the files of all layers, with any key."""
        return sorted(self.directory.glob(f"{self.prefix}{GRADIENTS_NAME}*"))

    def _file(self, layer: int) -> Path:
        return self.directory / f"{self.prefix}{GRADIENTS_NAME}{layer:05d}.safetensors"


@dataclass(frozen=True, kw_only=True)
class _BatchGradients:
    """Gradients of the loss for one batch in one layer."""

    inputs: Tensor
    """At the layer's input."""
    between: Tensor
    """At the hidden states after the attention, which is the gradient of its contribution."""
    inner_attention: Tensor
    """At the input of `Wo`."""
    inner_mlp: Tensor
    """At the input of `Wd`."""


def loss_gradients(  # noqa: PLR0913 (one pass, and where it resumes)
    layers: DenseLayers,
    tokens: Tensor,
    *,
    batch_size: int,
    files: GradientFiles,
    before_batch: Callable[[float], None],
    prefix_length: int = 0,
    target_seed: int | None = None,
    first_layer: int = 0,
    on_resumed: Callable[[float], None] | None = None,
) -> None:
    """Compute gradients of the summed next-token loss, forward and backward over the tokens.

    Masks are summed over groups of `GROUP_SEQUENCES`. A part of a group passes the model at a time:
    its hidden states before all layers are in memory at once. On a CPU, where weights are
    mapped, a part has at most `_TOKENS_AT_ONCE` tokens; elsewhere it is a whole group.

    Args:
        layers: the dense model.
        tokens: (sequences, length), int64.
        batch_size: sequences in one pass of a layer.
        files: files to which the gradients of the layers that this rank owns are added.
        before_batch: callback with the finished fraction; may raise to stop.
        prefix_length: positions of the prefix at the beginning of every sequence. Their gradients
            are propagated and part of the mask gradients, but not of `G`.
        target_seed: seed of targets that are sampled from the model's own predictions, one at each
            position: `G` is then an estimate of the true Fisher matrix. None takes the next tokens
            of the text, as the engine does, which gives the empirical one. A pass with it does
            not resume.
        first_layer: first layer whose gradients are needed.
        on_resumed: called with the finished fraction of an interrupted pass, if this one resumes
            it from `files`.

    Raises:
        NumericalError: if an activation or a gradient is not finite, naming the layer.
        ValueError: if sampled targets are to resume.
    """
    if target_seed is not None and files.key:
        raise ValueError("a pass with sampled targets does not resume: its files have no key")
    sampler = None if target_seed is None else torch.Generator().manual_seed(target_seed)
    # Tensors created in inference mode cannot be part of a graph, so everything is read again here.
    with torch.inference_mode(False), torch.no_grad():
        parts = _parts(layers, tokens.clone())
        own = range(first_layer, layers.num_layers)
        finished = min(map(files.parts, own), default=len(parts))
        if finished and on_resumed is not None:
            on_resumed(finished / len(parts))
        for number, (part, continues_group) in enumerate(parts):
            if number < finished:
                continue

            def on_progress(done: float, number: int = number) -> None:
                before_batch((number + done) / len(parts))

            at_once = max(min(batch_size, len(part), _TOKENS_AT_ONCE // part.shape[1]), 1)
            _PartPass(layers, part, prefix_length, at_once, on_progress, sampler).run(
                files, own, part=number, continues_group=continues_group
            )


def _parts(layers: DenseLayers, tokens: Tensor) -> list[tuple[Tensor, bool]]:
    """Return the parts of groups that this rank passes, and whether each continues a group.

    All ranks have equally many parts, of which some may be empty: after each, they add up theirs.
    """
    size, ranks = GROUP_SEQUENCES, layers.ranks
    if layers.device.type == "cpu":
        size = max(min(size, _TOKENS_AT_ONCE // tokens.shape[1]), 1)
    parts = []
    for group in torch.split(tokens, GROUP_SEQUENCES):
        own, most = group[ranks.share(len(group))], -(-len(group) // ranks.count)
        parts += [(own[start : start + size], start > 0) for start in range(0, most, size)]
    return parts


class _PartPass:
    """Forward and backward pass of a part of a group of sequences."""

    def __init__(
        self,
        layers: DenseLayers,
        tokens: Tensor,
        prefix_length: int,
        batch_size: int,
        on_progress: Callable[[float], None],
        sampler: torch.Generator | None,
    ) -> None:
        self._layers = layers
        self._sampler = sampler
        self._prefix_length = prefix_length
        self._tokens = tokens
        self._rows = [
            slice(start, min(start + batch_size, len(tokens)))
            for start in range(0, len(tokens), batch_size)
        ]
        self._on_progress = on_progress

    def run(self, files: GradientFiles, layers: range, *, part: int, continues_group: bool) -> None:
        """Add the part's gradients to the files of the last layers, `layers`."""
        states = list(self._forward())
        gradient = self._output_gradient(states.pop())
        for layer in reversed(layers):
            self._on_progress(0.3 + 0.7 * (layers.stop - 1 - layer) / len(layers))
            gradients = self._backward(layer, states.pop(), gradient)
            if gradients is not None:
                files.add(layer, gradients, part=part, continues_group=continues_group)

    def _forward(self) -> Iterator[Tensor]:
        """Yield the hidden states before every layer and after the last."""
        memory = self._layers.memory
        hidden = memory.copy(self._layers.embed(self._tokens).cpu())
        yield hidden
        for layer in range(self._layers.num_layers):
            self._on_progress(0.3 * layer / self._layers.num_layers)
            weights, settings = self._layers.weights(layer), self._layers.settings(layer)
            rotary = self._layers.rotary(layer, self._tokens.shape[1])
            after = memory.empty(hidden.shape, hidden.dtype)
            is_finite = []
            for (batch,) in zipped_batches((hidden,), self._rows, self._layers.device):
                output = decoder_layer.forward(batch.values, weights, settings, rotary)
                is_finite.append(torch.isfinite(output).all())
                batch.write_to(after, output)
            if is_finite and not torch.stack(is_finite).all():
                inputs = (hidden[rows].to(self._layers.device) for rows in self._rows)
                raise _not_finite(layer, inputs, weights, settings, rotary)
            hidden = after
            yield hidden

    def _output_gradient(self, hidden: Tensor) -> Tensor:
        """Return the gradient of the summed loss at the last layer's output, shape of `hidden`."""
        gradient = self._layers.memory.empty(hidden.shape, hidden.dtype).zero_()
        # The token at `position` is predicted from the position before; the prefix is not scored.
        first, length = max(self._prefix_length, 1), self._tokens.shape[1]
        for row, sequence in enumerate(hidden):
            own = sequence.to(self._layers.device)
            own_gradient = torch.zeros_like(own)
            for start in range(first - 1, length - 1, self._layers.logit_rows):
                end = min(start + self._layers.logit_rows, length - 1)
                targets = self._tokens[row, start + 1 : end + 1]
                own_gradient[start:end] = self._loss_gradient(own[start:end], targets)
            gradient[row] = own_gradient
        return gradient

    def _loss_gradient(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the gradient at `hidden`, (positions, hidden_size).

        Args:
            hidden: output of the last layer.
            targets: next tokens of the text, (positions,); not used if targets are sampled.
        """
        with torch.enable_grad():
            leaf = hidden.clone().requires_grad_(True)
            logits = self._layers.logits(leaf)
            labels = targets.to(logits.device)
            if self._sampler is not None:
                labels = _sampled_targets(logits.detach(), self._sampler)
            loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, leaf)
        return gradient

    def _backward(self, layer: int, hidden: Tensor, gradient: Tensor) -> LayerGradients | None:
        """Propagate `gradient`, in place, from the layer's output to its input.

        Args:
            layer: number of the layer.
            hidden: hidden states before the layer, (sequences, length, hidden_size).
            gradient: of the loss at the layer's output, shape of `hidden`.

        Returns:
            The gradients of all ranks' sequences; None on ranks that do not own the layer.

        Raises:
            NumericalError: if the gradient is not finite.
        """
        weights, settings = self._layers.weights(layer), self._layers.settings(layer)
        rotary = self._layers.rotary(layer, self._tokens.shape[1])
        device = weights.up.weight.device
        width, text = hidden.shape[-1], slice(self._prefix_length, None)
        mlp = torch.zeros(width, width, dtype=WORKING_DTYPE, device=device)
        attention = torch.zeros_like(mlp)
        inner_width = weights.attention_output.weight.shape[1] // weights.num_attention_heads
        shape = (weights.num_attention_heads, inner_width, inner_width)
        heads = torch.zeros(shape, device=device)
        moments = torch.zeros_like(heads)
        neurons = torch.zeros(weights.mlp_output.weight.shape[1], device=device)
        for before, after in zipped_batches((hidden, gradient), self._rows, device):
            graph = _LayerGraph(before.values, weights, settings, rotary)
            batch = graph.gradients(after.values)
            mlp += _outer(after.values[:, text])
            attention += _outer(batch.between[:, text])
            inner = graph.attention_inner
            heads += _head_products(inner, batch.inner_attention, weights)
            inner = scaled(inner, prefix_scale(graph.between, self._prefix_length))
            moments += _head_products(inner, inner, weights)
            neurons += (graph.mlp_inner.float() * batch.inner_mlp.float()).sum((0, 1))
            after.replace(batch.inputs)
        if not torch.isfinite(mlp).all() & torch.isfinite(attention).all():
            raise NumericalError("a gradient is NaN or infinite", layer=layer)
        ranks, own_tokens = self._layers.ranks, gradient[:, text, 0].numel()
        ranks.sum_((mlp, attention, heads, moments, neurons), to=ranks.owner(layer))
        tokens = int(ranks.totals([own_tokens])[0])
        if ranks.owner(layer) != ranks.rank:
            return None
        return LayerGradients(
            attention=attention.cpu() / tokens,
            mlp=mlp.cpu() / tokens,
            head_masks=heads.cpu().unsqueeze(0),
            neuron_masks=neurons.cpu().unsqueeze(0),
            head_moments=moments.cpu() / tokens,
            tokens=tokens,
        )


def _sampled_targets(logits: Tensor, sampler: torch.Generator) -> Tensor:
    """Return one token for each row of logits, (positions, vocabulary), drawn from its softmax.

    Tokens are drawn by inversion of the cumulative distribution, so that a sampler of the CPU gives
    the same ones for logits on any device, up to rounding.
    """
    cumulative = logits.softmax(-1).cumsum(-1)
    uniform = torch.rand(len(logits), 1, generator=sampler).to(cumulative)
    # 1 - u is never 0, so that no token of probability 0 is drawn.
    return torch.searchsorted(cumulative, (1 - uniform) * cumulative[:, -1:]).squeeze(1)


def _not_finite(
    layer: int,
    inputs: Iterable[Tensor],
    weights: LayerWeights,
    settings: LayerSettings,
    rotary: Rotary,
) -> NumericalError:
    """Return the error of a layer whose output is not finite, naming the module.

    Args:
        layer: number of the layer.
        inputs: batches of the hidden states before it.
        weights: of the layer.
        settings: of the layer.
        rotary: tables of the layer.
    """
    attended = (decoder_layer.attention(hidden, weights, settings, rotary) for hidden in inputs)
    is_finite = all(bool(torch.isfinite(added).all()) for added in attended)
    module: Module = "mlp" if is_finite else "attention"
    return NumericalError("an activation is NaN or infinite", layer=layer, module=module)


class _LayerGraph:
    """Forward pass of a layer with gradients enabled."""

    def __init__(
        self, hidden: Tensor, weights: LayerWeights, settings: LayerSettings, rotary: Rotary
    ) -> None:
        with torch.enable_grad():
            self.inputs = hidden.detach().clone().requires_grad_(True)
            normed = decoder_layer.attention_inputs(self.inputs, weights, settings)
            self.attention_inner = decoder_layer.attention_inner(normed, weights, settings, rotary)
            added = decoder_layer.added(
                self.attention_inner,
                weights.attention_output,
                weights.attention_output_norm,
                settings,
            )
            self.between = self.inputs + added
            source = self.inputs if settings.parallel_block else self.between
            self.mlp_inner = decoder_layer.mlp_inner(source, weights, settings)
            self.output = self.between + decoder_layer.added(
                self.mlp_inner, weights.mlp_output, weights.mlp_output_norm, settings
            )

    def gradients(self, at_output: Tensor) -> _BatchGradients:
        """Return the loss gradients, given the gradient at the layer's output."""
        tensors = (self.inputs, self.between, self.attention_inner, self.mlp_inner)
        inputs, between, attention, mlp = torch.autograd.grad(self.output, tensors, at_output)
        return _BatchGradients(
            inputs=inputs, between=between, inner_attention=attention, inner_mlp=mlp
        )


def _outer(gradient: Tensor) -> Tensor:
    """Return `Σ g gᵀ` over tokens, (hidden_size, hidden_size), float32."""
    flat = gradient.flatten(0, -2)
    return second_moment_sum(flat, flat)


def _head_products(inner: Tensor, gradient: Tensor, weights: LayerWeights) -> Tensor:
    """Return `Σ_t o_i g_j` within each head, (heads, v_head_dim, v_head_dim), float32."""
    heads = weights.num_attention_heads
    tokens = inner.shape[0] * inner.shape[1]
    left, right = (part.detach().float().reshape(tokens, heads, -1) for part in (inner, gradient))
    return torch.einsum("thi,thj->hij", left, right)
