"""Gradients of the language-model loss at every module's output, one layer in memory at a time.

Forward, the stream in front of every layer is kept (host memory); backward, each layer is computed
again from it with gradients on, and let go. What is kept of the gradients are second moments:

* `G = E[g gᵀ]` of the gradient at what attention and MLP add to the stream: the empirical Fisher
  matrix that turns output errors into loss (section 4 of docs/method.md);
* for the paper's estimator: per group of sequences, the gradient of a mask on the inner
  activations, `Σ o ∘ ∂L/∂o`, for the heads with all products of two dimensions of a head, so that
  a rotation into the PCA basis can still be made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from intraslice_core import decoder_layer
from intraslice_core.checkpoints.dense_model import DenseLayers
from intraslice_core.decoder_layer import LayerSettings, LayerWeights, Rotary
from intraslice_core.errors import NumericalError
from intraslice_core.linalg import WORKING_DTYPE
from intraslice_core.statistics import second_moment_sum

GROUP_SEQUENCES = 8
"""Sequences whose gradients are summed before they are squared, as the paper has it."""

_TOKENS_AT_ONCE = 1024
"""In a layer's graph, or one sequence: what it keeps of each is many times the token's state."""


@dataclass(frozen=True, kw_only=True)
class LayerGradients:
    """What the loss says of one layer."""

    attention: Tensor
    """`G` at what the attention adds, (hidden_size, hidden_size), float64, per token."""
    mlp: Tensor
    """`G` at what the MLP adds, (hidden_size, hidden_size), float64, per token."""
    head_masks: Tensor
    """`Σ_t o_i ∂L/∂o_j` of each head by group of sequences, (groups, heads, v_head_dim, same)."""
    neuron_masks: Tensor
    """`Σ_t u_j ∂L/∂u_j` by group of sequences, (groups, intermediate_size)."""
    head_moments: Tensor
    """`E[o oᵀ]` of each head, (heads, v_head_dim, same)."""
    tokens: int

    def joined(self, other: LayerGradients) -> LayerGradients:
        """Of the tokens of both."""
        total = self.tokens + other.tokens
        mine, theirs = self.tokens / total, other.tokens / total
        return LayerGradients(
            attention=mine * self.attention + theirs * other.attention,
            mlp=mine * self.mlp + theirs * other.mlp,
            head_masks=torch.cat((self.head_masks, other.head_masks)),
            neuron_masks=torch.cat((self.neuron_masks, other.neuron_masks)),
            head_moments=mine * self.head_moments + theirs * other.head_moments,
            tokens=total,
        )


@dataclass(frozen=True, kw_only=True)
class GradientFiles:
    """All layers' gradients, each in a file: in memory they would outgrow the model."""

    directory: Path

    def add(self, layer: int, found: LayerGradients) -> None:
        """Join with what the layer's file holds."""
        file = self._file(layer)
        joined = self.read(layer).joined(found) if file.exists() else found
        tensors = {
            "attention": joined.attention,
            "mlp": joined.mlp,
            "head_masks": joined.head_masks,
            "neuron_masks": joined.neuron_masks,
            "head_moments": joined.head_moments,
            "tokens": torch.tensor(joined.tokens),
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, file)

    def read(self, layer: int) -> LayerGradients:
        """One layer's, on the CPU."""
        tensors = load_file(self._file(layer))
        tokens = int(tensors.pop("tokens"))
        return LayerGradients(**tensors, tokens=tokens)

    def _file(self, layer: int) -> Path:
        return self.directory / f"gradients-{layer:05d}.safetensors"


@dataclass(frozen=True, kw_only=True)
class _Taken:
    """Gradients of one batch in one layer."""

    inputs: Tensor
    between: Tensor
    """At the stream behind the attention: the gradient of what it adds."""
    inner_attention: Tensor
    inner_mlp: Tensor


def loss_gradients(
    layers: DenseLayers,
    tokens: Tensor,
    *,
    batch_size: int,
    files: GradientFiles,
    before_batch: Callable[[float], None],
) -> None:
    """Run forward and backward over the tokens, summed next-token losses as they are.

    Sequences are taken in groups of `GROUP_SEQUENCES`; a group's streams in front of all layers
    are in host memory at once.

    Args:
        layers: the dense model.
        tokens: (sequences, length).
        batch_size: sequences in one pass of a layer.
        files: where the layers' gradients are added.
        before_batch: told the fraction that is done; may raise to stop.

    Raises:
        NumericalError: if a gradient is not finite, naming the layer.
    """
    # What was made in inference mode can be no part of a graph: everything is read anew here.
    with torch.inference_mode(False), torch.no_grad():
        groups = torch.split(tokens.clone(), GROUP_SEQUENCES)
        for number, group in enumerate(groups):

            def told(done: float, number: int = number) -> None:
                before_batch((number + done) / len(groups))

            at_once = max(min(batch_size, len(group), _TOKENS_AT_ONCE // group.shape[1]), 1)
            _GroupPass(layers, group, at_once, told).run(files)


class _GroupPass:
    """One group of sequences, forward and backward."""

    def __init__(
        self, layers: DenseLayers, tokens: Tensor, batch_size: int, told: Callable[[float], None]
    ) -> None:
        self._layers = layers
        self._tokens = tokens
        self._rows = [
            slice(start, min(start + batch_size, len(tokens)))
            for start in range(0, len(tokens), batch_size)
        ]
        self._told = told

    def run(self, files: GradientFiles) -> None:
        """Add the group's share to every layer's file."""
        states = list(self._forward())
        gradient = self._behind_the_last(states.pop())
        for layer in reversed(range(self._layers.num_layers)):
            self._told(1.0 - 0.7 * (layer + 1) / self._layers.num_layers)
            files.add(layer, self._backward(layer, states.pop(), gradient))

    def _forward(self) -> Iterator[Tensor]:
        """The stream in front of every layer, and behind the last, in host memory."""
        memory = self._layers.memory
        hidden = memory.copy(self._layers.embed(self._tokens).cpu())
        yield hidden
        for layer in range(self._layers.num_layers):
            self._told(0.3 * layer / self._layers.num_layers)
            weights, settings = self._layers.weights(layer), self._layers.settings(layer)
            rotary = self._layers.rotary(layer, self._tokens.shape[1])
            behind = memory.empty(hidden.shape, hidden.dtype)
            for rows in self._rows:
                moved = hidden[rows].to(weights.up.weight.device)
                behind[rows] = _checked(layer, moved, weights, settings, rotary).to(hidden.device)
            hidden = behind
            yield hidden

    def _behind_the_last(self, hidden: Tensor) -> Tensor:
        """Gradient of the summed loss at the last layer's output, as `hidden`."""
        gradient = torch.zeros_like(hidden)
        targets = self._tokens[:, 1:]
        for row in range(hidden.shape[0]):
            for start in range(0, targets.shape[1], self._layers.logit_rows):
                part = slice(start, min(start + self._layers.logit_rows, targets.shape[1]))
                gradient[row, part] = self._loss_gradient(hidden[row, part], targets[row, part])
        return gradient

    def _loss_gradient(self, hidden: Tensor, targets: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = hidden.clone().requires_grad_(True)
            logits = self._layers.logits(leaf)
            wanted = targets.to(logits.device)
            loss = torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, leaf)
        return gradient

    def _backward(self, layer: int, hidden: Tensor, gradient: Tensor) -> LayerGradients:
        """Move `gradient`, in place, from behind the layer to in front of it."""
        weights, settings = self._layers.weights(layer), self._layers.settings(layer)
        rotary = self._layers.rotary(layer, self._tokens.shape[1])
        device = weights.up.weight.device
        width = hidden.shape[-1]
        mlp = torch.zeros(width, width, dtype=WORKING_DTYPE, device=device)
        attention = torch.zeros_like(mlp)
        heads = torch.zeros((), device=device)
        moments = torch.zeros((), device=device)
        neurons = torch.zeros((), device=device)
        for rows in self._rows:
            arriving = gradient[rows].to(device)
            forward = _LayerGraph(hidden[rows].to(device), weights, settings, rotary)
            taken = forward.gradients(arriving)
            mlp += _outer(arriving)
            attention += _outer(taken.between)
            inner = forward.attention_inner
            heads = heads + _head_products(inner, taken.inner_attention, weights)
            moments = moments + _head_products(inner, inner, weights)
            neurons = neurons + (forward.mlp_inner.float() * taken.inner_mlp.float()).sum((0, 1))
            gradient[rows] = taken.inputs.to(gradient.device)
        if not (torch.isfinite(mlp).all() and torch.isfinite(attention).all()):
            raise NumericalError("a gradient is NaN or infinite", layer=layer)
        tokens = gradient.shape[0] * gradient.shape[1]
        return LayerGradients(
            attention=attention.cpu() / tokens,
            mlp=mlp.cpu() / tokens,
            head_masks=heads.cpu().unsqueeze(0),
            neuron_masks=neurons.detach().cpu().unsqueeze(0),
            head_moments=moments.cpu() / tokens,
            tokens=tokens,
        )


def _checked(
    layer: int, hidden: Tensor, weights: LayerWeights, settings: LayerSettings, rotary: Rotary
) -> Tensor:
    """The stream behind a layer; what overflows is named."""
    behind = decoder_layer.forward(hidden, weights, settings, rotary)
    if torch.isfinite(behind).all():
        return behind
    attends = torch.isfinite(decoder_layer.attention(hidden, weights, settings, rotary)).all()
    raise NumericalError(
        "an activation is NaN or infinite", layer=layer, module="mlp" if attends else "attention"
    )


class _LayerGraph:
    """A layer computed with gradients on."""

    def __init__(
        self, hidden: Tensor, weights: LayerWeights, settings: LayerSettings, rotary: Rotary
    ) -> None:
        with torch.enable_grad():
            self.inputs = hidden.detach().clone().requires_grad_(True)
            read = decoder_layer.attention_inputs(self.inputs, weights, settings)
            self.attention_inner = decoder_layer.attention_inner(read, weights, settings, rotary)
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

    def gradients(self, arriving: Tensor) -> _Taken:
        """Of the loss, whose gradient at the layer's output is `arriving`."""
        wanted = (self.inputs, self.between, self.attention_inner, self.mlp_inner)
        inputs, between, attention, mlp = torch.autograd.grad(self.output, wanted, arriving)
        return _Taken(inputs=inputs, between=between, inner_attention=attention, inner_mlp=mlp)


def _outer(gradient: Tensor) -> Tensor:
    """`Σ g gᵀ` over tokens, (hidden_size, hidden_size), float32."""
    flat = gradient.flatten(0, -2)
    return second_moment_sum(flat, flat)


def _head_products(inner: Tensor, gradient: Tensor, weights: LayerWeights) -> Tensor:
    """`Σ_t o_i g_j` within each head, (heads, v_head_dim, v_head_dim), float32."""
    heads = weights.num_attention_heads
    tokens = inner.shape[0] * inner.shape[1]
    one, other = (part.detach().float().reshape(tokens, heads, -1) for part in (inner, gradient))
    return torch.einsum("thi,thj->hij", one, other)
