"""The arms of the experiment: what each one trains on, and with which objective. Pure functions and data.

Every arm sees the same questions (but those that its recipe leaves no rejected answer) in the same number of steps, or
in twice as many; they differ in the rejected answers and the loss.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from codes.common.records import content_hash
from codes.train.losses import ORIGINAL

Recipe = Callable[[Sequence[dict], int], list[dict]]  # train records with all answers, seed -> the arm's records


def original_answers(records: Sequence[dict], seed: int) -> list[dict]:
    """Each question's chosen answer and its original rejected ones: preference data as it is found."""
    return _filtered(records, lambda record, place: record["bias_type"][place] == ORIGINAL)


def all_answers(records: Sequence[dict], seed: int) -> list[dict]:
    """The original and all biased rejected answers."""
    return list(records)


def without_bias(bias: str) -> Recipe:
    """All answers but those that carry ``bias``."""
    return lambda records, seed: _filtered(records, lambda record, place: record["bias_type"][place] != bias)


def one_biased_answer(records: Sequence[dict], seed: int) -> list[dict]:
    """The original answers, and one of each question's biased ones, drawn by the seed."""

    def kept(record: dict, place: int) -> bool:
        biased = [i for i, bias in enumerate(record["bias_type"]) if bias != ORIGINAL]
        return place not in biased or place == min(biased, key=lambda i: _draw(seed, record, i))

    return _filtered(records, kept)


def share_of_biased(share: float) -> Recipe:
    """The original answers, and every biased one with probability ``share``."""
    return lambda records, seed: _filtered(
        records,
        lambda record, place: record["bias_type"][place] == ORIGINAL or _draw(seed, record, place) < share,
    )


def _filtered(records: Sequence[dict], kept: Callable[[dict, int], bool]) -> list[dict]:
    """The records with the rejected answers for which ``kept(record, place)`` holds; those left with none go."""
    filtered = []
    for record in records:
        places = [place for place in range(len(record["rejected"])) if kept(record, place)]
        lists = {name: [record[name][place] for place in places] for name in ("rejected", "bias_type")}
        if places:
            filtered.append(record | lists)
    return filtered


def _draw(seed: int, record: dict, place: int) -> float:
    """A number from 0 to 1 that depends on the seed and the answer alone."""
    return int(content_hash(seed, record["question"], record["rejected"][place])[:13], 16) / 16**13


@dataclass(frozen=True)
class Arm:
    """One way to train. ``by_rules``: the biased answers are made by the offline injector from the original ones."""

    name: str
    says: str  # what the table calls it
    flags: tuple[str, ...]
    recipe: Recipe = all_answers
    by_rules: bool = False
    left_out: str | None = None  # the bias that it never sees
    group: str = "main"  # main, transfer or ablation: the table that it stands in
    epochs: int = 1  # times those of the other arms
    max_length: int | None = None  # tokens of a conversation, in training and testing, where not those of the others


CONTRAST = ("--training_mode", "contrast")
BRADLEY_TERRY = ("--training_mode", "bradley_terry")
MARGIN = ("--training_mode", "pairwise")
TRANSFER_BIASES = ("length", "authority", "beauty", "assertiveness", "sentiment", "concreteness")

WEIGHTED = (*CONTRAST, "--original_weight", "0.6")
TWICE = ",".join(f"{bias}=2" for bias in TRANSFER_BIASES)

ARMS = {
    arm.name: arm
    for arm in (
        Arm("bt-original", "Bradley-Terry, original pairs", BRADLEY_TERRY, original_answers),
        Arm("margin-original", "pairwise margin, original pairs", MARGIN, original_answers),
        Arm("margin-all", "pairwise margin, original and biased pairs", (*MARGIN, "--pairs", "all")),
        Arm("contrast", "contrastive", CONTRAST),
        Arm("contrast-original-0.6", "contrastive, original weighted 0.6", WEIGHTED),
        Arm("contrast-rules", "contrastive on answers by rules", CONTRAST, original_answers, by_rules=True),
        Arm(
            "length-penalty",
            "Bradley-Terry, original pairs, length penalty",
            (*BRADLEY_TERRY, "--length_penalty_coefficient", "10"),
            original_answers,
        ),
        *(
            Arm(
                f"without-{bias}",
                f"contrastive, never saw {bias}",
                CONTRAST,
                without_bias(bias),
                left_out=bias,
                group="transfer",
            )
            for bias in TRANSFER_BIASES
        ),
        Arm(
            "contrast-original-0.6-2-epochs",
            "original weighted 0.6, twice the epochs",
            WEIGHTED,
            group="ablation",
            epochs=2,
        ),
        Arm(
            "contrast-biased-2",
            "biased answers weighted 2",
            (*CONTRAST, "--bias_weights", TWICE),
            group="ablation",
        ),
        # About the tokens that the biased answers add.
        Arm(
            "bt-original-2-epochs",
            "Bradley-Terry, original pairs, twice the epochs",
            BRADLEY_TERRY,
            original_answers,
            group="ablation",
            epochs=2,
        ),
        Arm("tokens-512", "512 tokens of a conversation", CONTRAST, group="ablation", max_length=512),
        # What helped alone, together; with the best of the baselines at the same length.
        Arm(
            "margin-original-512",
            "pairwise margin, original pairs, 512 tokens",
            MARGIN,
            original_answers,
            group="ablation",
            max_length=512,
        ),
        Arm(
            "combined",
            "512 tokens, biased weighted 2, twice the epochs",
            (*CONTRAST, "--bias_weights", TWICE),
            group="ablation",
            epochs=2,
            max_length=512,
        ),
        Arm(
            "combined-length-penalty",
            "512 tokens, weighted 2, twice, length penalty",
            (*CONTRAST, "--bias_weights", TWICE, "--length_penalty_coefficient", "10"),
            group="ablation",
            epochs=2,
            max_length=512,
        ),
        Arm("temperature-0.25", "temperature 0.25", (*CONTRAST, "--temperature", "0.25"), group="ablation"),
        Arm("temperature-1", "temperature 1", (*CONTRAST, "--temperature", "1"), group="ablation"),
        Arm("one-biased", "one biased answer a question", CONTRAST, one_biased_answer, group="ablation"),
        Arm("half-biased", "half of the biased answers", CONTRAST, share_of_biased(0.5), group="ablation"),
        Arm("with-rules", "biased answers by rules, too", CONTRAST, by_rules=True, group="ablation"),
    )
}
GROUPS = tuple(dict.fromkeys(arm.group for arm in ARMS.values()))
BASELINES = ("bt-original", "bt-original-2-epochs", "margin-original", "margin-original-512")


def named_arms(names: Sequence[str]) -> list[Arm]:
    """The arms of these names or groups, each once, in the order of the arms."""
    return [arm for arm in ARMS.values() if arm.name in names or arm.group in names]
