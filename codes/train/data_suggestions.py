"""What an inspection of training data suggests, in plain words, each with the flag or command that mends it."""

from collections.abc import Iterator, Mapping

from codes.train.text_style import rule_name

# What goes with each count of style: the bias that construction adds answers with.
BIAS_OF_COUNT = {
    **dict.fromkeys(("characters", "words", "paragraphs"), "length"),
    **dict.fromkeys(("headings", "list items", "bold passages", "emoji"), "beauty"),
    "citations": "authority",
    "numbers": "concreteness",
    "praise": "sycophancy",
    **dict.fromkeys(("joyful words", "exclamation marks"), "sentiment"),
    "hedges": "assertiveness",
}
NOTICED_SHARE = 0.01  # of records, conversations or answers, from which on a loss is worth a word
OUTNUMBERED = 2  # biased rejected answers for each original one
TOLD_BY_LENGTH = 0.75  # of a bias's pairs that a rule of length gets right
LONG_GROUPS = 4  # times the median, in tokens

Suggestion = dict[str, str]


def suggestions(result: Mapping) -> list[Suggestion]:
    """Findings, the gravest first: ``finding`` says what was found, ``remedy`` what mends it."""
    found = (*_leakage(result), *_contradictions(result), *_shortcuts(result), *_length_in_biases(result))
    found += (*_tokens(result), *_balance(result))
    return [{"finding": finding, "remedy": remedy} for finding, remedy in found]


def _leakage(result: Mapping) -> Iterator[tuple[str, str]]:
    across = result["duplicates"]["question"]["across"]
    if leaking := across["train_records_same_or_near"]:
        same = across["train_records_same"]
        yield (
            f"{leaking} training records ask what an evaluation record asks ({same} the same, {leaking - same} "
            f"nearly), so {across['eval_records_same_or_near']} evaluation records measure nothing new",
            "--clean_dir DIR writes the training files without them; import_data --holdout keeps whole questions out",
        )
    answers = (
        result["duplicates"]["chosen"]["across"]["train_records_same_or_near"] if result["duplicates"]["chosen"] else 0
    )
    if answers > leaking:
        yield (
            f"the chosen answer of {answers} training records stands in the evaluation data, too",
            "read them under duplicates.chosen.across; where they are stock phrases nothing needs mending",
        )


def _contradictions(result: Mapping) -> Iterator[tuple[str, str]]:
    found = result["contradictions"]
    if found["opposed_pairs"]:
        yield (
            f"{found['opposed_pairs']} pairs of answers are ranked one way here and the other way there "
            f"({found['records_with_opposed_pairs']} records)",
            "--clean_dir DIR leaves these records out; --label_smoothing_factor 0.05 in training trusts labels less",
        )
    if found["records_whose_chosen_is_rejected"]:
        yield (
            f"{found['records_whose_chosen_is_rejected']} records reject the very answer they choose",
            "training leaves such rejected answers out by itself; python -m codes.construct.verify_correctness finds "
            "those that are as good in other words",
        )
    if found["repeated_records"]:
        yield (
            f"{found['repeated_records']} records stand in the data before, word for word",
            "--clean_dir DIR keeps the first of each; to count one twice on purpose give its file a weight (FILE:2)",
        )


def _shortcuts(result: Mapping) -> Iterator[tuple[str, str]]:
    """One for each bias, by its strongest rule."""
    rules = [(name, figures) for name, figures in result["style"]["all"]["rules"].items() if figures["is_shortcut"]]
    rules.sort(key=lambda rule: -abs(rule[1]["of_all_pairs"] - 0.5))
    told = set()
    for name, figures in rules:
        bias = BIAS_OF_COUNT.get(name)
        if (bias or name) in told:
            continue
        told.add(bias or name)
        right = max(figures["of_all_pairs"], 1 - figures["of_all_pairs"])
        remedies = ["--length_penalty_coefficient 10 in training"] if bias == "length" else []
        if bias is not None:
            remedies += _against(figures, bias, result["records"]["train"]["rejected_by_bias_type"])
        yield (
            f'the rule "{rule_name(name, figures)}" alone gets {right:.0%} of the pairs right',
            ", or ".join(remedies) or "more pairs in which it is the other way round; see them with --page",
        )


def _length_in_biases(result: Mapping) -> Iterator[tuple[str, str]]:
    """Biases whose pairs can be told apart by length, which then is what they may teach."""
    told = {}
    for bias, style in result["style"]["by_bias_type"].items():
        figures = style["rules"]["characters"]
        right = max(figures["of_all_pairs"], 1 - figures["of_all_pairs"])
        if bias not in ("original", "length") and figures["is_shortcut"] and right >= TOLD_BY_LENGTH:
            told[bias] = f"{bias}: {rule_name('characters', figures)}, {right:.0%}"
    if told:
        weights = ",".join(f"{bias}=0.5" for bias in told)
        yield (
            f"length tells the pairs of some biases apart, so they may teach length ({'; '.join(told.values())})",
            f"--length_penalty_coefficient 10 in training, or --bias_weights {weights}",
        )


def _against(figures: Mapping, bias: str, rejected_by_bias_type: Mapping) -> list[str]:
    # Assertive answers are those without hedges.
    rejected_lack_it = (figures["of_all_pairs"] >= 0.5) != (bias == "assertiveness")
    if rejected_lack_it:
        return [f"worse answers that have it, too: python -m codes.construct.gptout --bias_types {bias}"]
    if bias in rejected_by_bias_type:
        return [f"--bias_weights {bias}=0.5 in training, so that answers made with it weigh less"]
    return []


def _tokens(result: Mapping) -> Iterator[tuple[str, str]]:
    tokens = result["tokens"]
    if tokens is None:
        return
    cut, longest = tokens["cut"], tokens["max_length"]
    conversations = max(cut["conversations_with_cut_prompt"], cut["conversations_with_cut_answer"])
    if conversations >= NOTICED_SHARE * tokens["conversations"]:
        lost = (cut["prompt_tokens"] + cut["answer_tokens"]) / conversations
        enough = -(-int(longest + 2 * lost) // 128) * 128
        yield (
            f"{cut['share_with_cut_prompt']:.1%} of the conversations lose prompt tokens and "
            f"{cut['share_with_cut_answer']:.1%} the answer's end at {longest} tokens, {lost:.0f} each on average",
            f"--max_length {enough}, where the model has the positions",
        )
    dropped = tokens["dropped"]
    if dropped["answers_equal_to_chosen"]:
        yield (
            f"{dropped['answers_equal_to_chosen']} rejected answers equal the chosen one within {longest} tokens, and "
            f"{dropped['groups_without_rejected']} groups are left without any: they are not trained on",
            "a larger --max_length, where they differ later on",
        )
    if tokens["group"]["99"] > LONG_GROUPS * tokens["group"]["50"]:
        yield (
            f"one group in a hundred has {tokens['group']['99']} tokens or more, the median {tokens['group']['50']}",
            f"--tokens_per_device_batch {4 * tokens['group']['50']} fills batches by tokens, not by groups",
        )


def _balance(result: Mapping) -> Iterator[tuple[str, str]]:
    train = result["records"]["train"]
    unused = sum(train["left_out_by_verification"].values())
    if unused >= NOTICED_SHARE * train["records"]:
        yield (
            f"{unused} of {train['records']} training records are left out by their verification",
            "--keep_unverified uses them all the same; python -m codes.construct.browse FILE shows why they failed",
        )
    if train["verification"].get("absent") and len(train["verification"]) > 1:
        yield (
            f"{train['verification']['absent']} training records were never verified, and others were",
            "python -m codes.construct.verify_correctness, or --verified_only in training",
        )
    biases = train["rejected_by_bias_type"]
    original, others = biases.get("original", 0), sum(biases.values()) - biases.get("original", 0)
    if original and others > OUTNUMBERED * original:
        yield (
            f"biased rejected answers outnumber the original ones {others / original:.1f} to 1",
            "--original_weight 0.5 in training gives both kinds as much of the loss",
        )
