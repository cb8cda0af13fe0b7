"""The table of targets: how figures are computed, and when a target is met."""

from __future__ import annotations

import math

import pytest

from benchmarks import targets
from benchmarks.targets import Bounds, Comparison, Figure, TextScore, compare


def score(compressed: float, dense: float = 10.0) -> TextScore:
    return TextScore(dense=dense, compressed=compressed)


ROW = Comparison(
    name="row",
    title="over two",
    references=("one", "two"),
    bounds={"0.3": Bounds(in_domain=0.5, out_of_domain=0.8)},
)
SCORES = {
    "intraslice_plus": {"wiki": score(12.0), "doc": score(15.0), "code": score(30.0)},
    "one": {"wiki": score(14.0), "doc": score(20.0), "code": score(35.0)},
    "two": {"wiki": score(15.0), "doc": score(30.0), "code": score(30.0)},
}


def test_ratios_are_averaged_over_texts_against_the_best_reference_of_each():
    result = compare(ROW, "0.3", SCORES, in_domain=["wiki"])
    assert result.in_domain == Figure(value=2 / 4, bound=0.5)
    assert result.out_of_domain is not None
    assert result.out_of_domain.value == pytest.approx((5 / 10 + 20 / 20) / 2)
    assert result.out_of_domain.worst == ("code", 1.0)
    assert result.in_domain.met
    assert result.out_of_domain.verdict == "≤ 0.80 met"


def test_a_method_that_could_not_be_measured_is_not_compared_with():
    scores = {method: by_text for method, by_text in SCORES.items() if method != "one"}
    result = compare(ROW, "0.3", scores, in_domain=["wiki"])
    assert result.in_domain == Figure(value=2 / 5, bound=0.5)


def test_a_ratio_without_bounds_has_no_verdict():
    result = compare(ROW, "0.2", SCORES, in_domain=["wiki"])
    assert result.in_domain is not None
    assert result.in_domain.met is None
    assert result.in_domain.verdict == ""
    assert result.facts()["in_domain"]["target"] is None


def test_on_the_mixture_the_first_text_alone_is_bounded():
    row = Comparison(
        name="mixture",
        title="on the mixture",
        references=("one",),
        bounds={"0.3": Bounds(out_of_domain=0.4)},
        on_mixture=True,
    )
    result = compare(row, "0.3", SCORES, in_domain=["doc"])
    assert result.out_of_domain is not None
    assert result.out_of_domain.value == 0.5
    assert result.out_of_domain.worst == ("code", pytest.approx(0.8))
    assert result.out_of_domain.verdict == "≤ 0.40 missed"


def test_a_reference_without_loss_makes_any_loss_infinite():
    assert targets.delta_ppl_ratio(score(11.0), [score(9.0)]) == math.inf
    assert targets.delta_ppl_ratio(score(9.5), [score(9.0)]) == 1.0
    assert Figure(value=math.inf, bound=0.5).facts()["value"] is None


@pytest.mark.parametrize(("fraction", "met"), [(0.49, False), (0.5, True)])
def test_a_recovered_fraction_must_reach_its_bound(fraction, met):
    result = targets.recovered("0.3", {"doc": fraction, "wiki": 0.2, "chat": 0.4}, ["doc"])
    assert result.in_domain is not None
    assert result.out_of_domain is not None
    assert result.in_domain.met is met
    assert result.out_of_domain.value == pytest.approx(0.3)
    assert result.out_of_domain.worst == ("wiki", 0.2)
    assert result.out_of_domain.met is False
