"""Several scores of one conversation made one: of the members of an ensemble, or of the heads on one trunk.

The members' scores must be on one scale. ``penalised`` is the mean less a multiple of the members' variance (the
uncertainty-weighted optimisation of Coste et al. 2023, arXiv 2310.02743, section 3; ``minimum`` is their worst-case
optimisation). What members of an ensemble disagree on is what training data did not decide, so an answer that makes
one of them alone enthusiastic is held back.
"""

from torch import Tensor

RULES = ("mean", "minimum", "penalised")


def combined(scores: Tensor, rule: str, penalty: float = 1.0) -> Tensor:
    """[..., members] -> [...] by the rule; ``penalty``, at least 0, is the multiple that ``penalised`` takes off.

    Raises ValueError for an unknown rule.
    """
    if rule == "mean":
        return scores.mean(-1)
    if rule == "minimum":
        return scores.amin(-1)
    if rule == "penalised":
        return scores.mean(-1) - penalty * scores.var(-1, correction=0)
    raise ValueError(f"unknown rule {rule!r}; known are {', '.join(RULES)}")


def disagreement(scores: Tensor) -> Tensor:
    """The members' standard deviation (of all members, not an estimate from a sample): [..., members] -> [...]."""
    return scores.std(-1, correction=0)
