"""Which of several allocations does best on text that nothing was learnt from.

Curves price every module as if all others stayed dense, and are scaled by cuts of one module alone.
What attention costs when all layers lose some at once they do not know: on SmolLM2-135M, calibrated
on a mixture of sources, shapes by the bare curves did 1.3 times the damage to other text that those
did that spared the attention. So a few allocations, by the same curves at several prices of the
attention, are rehearsed (`planning.rehearsal`): the idea of Týr-the-Pruner, in few steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from intraslice_core.allocation.priced_plan import PricedPlan
from intraslice_core.errors import ConfigurationError
from intraslice_core.plan import ModelPlan
from intraslice_core.planning.estimators import AttentionOffer

OFFERS = (
    AttentionOffer(heads=False, price=1.0),
    AttentionOffer(heads=True, price=2.0),
    AttentionOffer(heads=True, price=4.0),
)
"""The first is taken where nothing can be rehearsed."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Shapes, and the mean loss of the model with them."""

    offer: AttentionOffer
    priced: PricedPlan
    loss: float
    """In nats a token, as rehearsed."""


def search(
    allocate: Callable[[AttentionOffer], PricedPlan], loss: Callable[[ModelPlan], float]
) -> tuple[Candidate, ...]:
    """Allocations by all offers, each different plan once, the best first.

    Args:
        allocate: shapes by an offer.
        loss: of a model with such shapes.

    Raises:
        ConfigurationError: if no offer has shapes within the budget.
    """
    found: list[Candidate] = []
    refusals: list[ConfigurationError] = []
    for offer in OFFERS:
        try:
            priced = allocate(offer)
        except ConfigurationError as error:  # rounding misses the budget by these curves
            refusals.append(error)
            continue
        if all(priced.plan != one.priced.plan for one in found):
            found.append(Candidate(offer=offer, priced=priced, loss=loss(priced.plan)))
    if not found:
        raise refusals[0]
    return tuple(sorted(found, key=lambda one: one.loss))
