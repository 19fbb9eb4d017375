"""Append an answer to a related but different question (LLMBar's GPTInst) to the rejected answers of train records.

    python -m codes.construct.gptinst --input_file data/train/sample.jsonl --output_file output/gptinst.jsonl \\
        --backend rules

With `openai`, an LLM is asked for a question close to the record's, which is checked to differ, and then for a good
answer to it, about as long as the chosen one; an answer far off that length is asked for again, once. With `rules`,
question and answer are another record's of the same file: the most similar in wording among those with an answer of
similar length. The question is stored as `similar_question`, the answer's `bias_type` is "gptinst".
"""

import argparse
import difflib
import heapq
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from codes.common.answer_units import language, normal_space
from codes.common.cli import command_parser, run_main
from codes.common.llm import Ask, Backend, Call, CallFailed
from codes.common.prompt_text import as_text
from codes.common.records import content_hash
from codes.construct import api
from codes.construct.bias_checks import looks_like_error, reply_problem
from codes.construct.build_prompt import PROMPT_VERSION, answer_prompt, similar_question_prompt

POOL_SIZE = 1000  # records that the rules backend chooses among; the cost of a row grows with it
TOO_SIMILAR = 0.9  # share of equal wording from which two questions count as the same
PROPOSALS = 3  # questions asked for before a record is given up
LENGTH_SPAN = (0.5, 2.0)  # characters of the answer over characters of the chosen one


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    rows, total = api.input_rows(args)
    backend = api.make_backend(args)
    pool = make_pool(rows.whole(), args.seed) if args.backend == "rules" else []

    async def process(record: dict, ask: Ask) -> dict:
        return await add_gptinst(record, ask, backend, pool)

    configuration = {"command": "gptinst", "prompt_version": PROMPT_VERSION, "seed": args.seed}
    counts = api.run(args, process, backend, configuration, rows, total)
    return api.report(counts, args.output_file)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__, "codes.construct.gptinst")
    api.add_construction_flags(parser, temperature=0.7)
    return parser.parse_args(argv)


async def add_gptinst(record: dict, ask: Ask, backend: Backend, pool: Sequence["Candidate"]) -> dict:
    """The record with one gptinst answer; as it was where no question or answer could be had (a rerun tries again)."""
    try:
        if backend.name == "rules":
            question, answer = await _from_pool(record, ask, pool)
            answers_asked = 0
        else:
            question, answer, answers_asked = await _from_llm(record, ask)
    except CallFailed:  # listed by the runner
        return record
    checks = [] if normal_space(answer) != normal_space(record["chosen"]) else ["the same text as the chosen answer"]
    ratio = length_ratio(answer, record["chosen"])
    if is_far_off(ratio):
        checks.append(f"{ratio:.2f} times as long as the chosen answer")
    provenance = {
        "command": "gptinst",
        "backend": backend.name,
        "model": backend.model,
        "prompt_version": None if backend.name == "rules" else PROMPT_VERSION,
        "bias": "gptinst",
        "method": "another record's question and answer" if backend.name == "rules" else "generated",
        "sampling": api.sampling_settings(backend),
        "question_similarity": round(wording_overlap(as_text(record["question"]), question), 3),
        "length_ratio": round(ratio, 3),
        **({"answers_asked": answers_asked} if answers_asked else {}),
        "checks": checks,
    }
    return api.with_rejected(record, [answer], ["gptinst"], [provenance], similar_question=question)


async def _from_llm(record: dict, ask: Ask) -> tuple[str, str, int]:
    """A different question, an answer to it, and how many answers were asked for.

    Raises CallFailed where the last proposed question is too close as well.
    """
    row_id = str(record["id"])

    def problem(question: str) -> str | None:
        return question_problem(record, question.strip())

    for attempt in range(PROPOSALS):
        prompt = similar_question_prompt(record["question"], attempt)
        call = Call(f"{row_id}/similar_question/{attempt}", prompt, {"kind": "similar_question"})
        # The last proposal fails as a call, so that a rerun asks for it again.
        question = (await ask(call, problem if attempt == PROPOSALS - 1 else None)).text.strip()
        if problem(question) is None:
            break
    return question, *await _answer_of_length(question, record, ask)


async def _answer_of_length(question: str, record: dict, ask: Ask) -> tuple[str, int]:
    """An answer about as long as the chosen one, and how many were asked for; one far off is asked for again, once.

    The nearer of the two is kept; where the second call fails, the first answer is.
    """
    key, chosen = f"{record['id']}/gptinst_answer", record["chosen"]
    first = (await ask(Call(f"{key}/0", answer_prompt(question, chosen), {"kind": "answer"}), reply_problem)).text
    if not is_far_off(length_ratio(first, chosen)):
        return first, 1
    again = Call(f"{key}/1", answer_prompt(question, chosen, earlier=first), {"kind": "answer"})
    try:
        second = (await ask(again, reply_problem)).text
    except CallFailed:  # listed by the runner, so that a rerun asks again
        return first, 2
    return min((first, second), key=lambda answer: abs(math.log(length_ratio(answer, chosen)))), 2


def length_ratio(answer: str, chosen: str) -> float:
    """Characters of the answer over characters of the chosen one, outer white space left out."""
    return len(answer.strip()) / len(chosen.strip())


def is_far_off(ratio: float) -> bool:
    """Whether a length ratio is outside of LENGTH_SPAN."""
    return not LENGTH_SPAN[0] <= ratio <= LENGTH_SPAN[1]


def question_problem(record: dict, question: str) -> str | None:
    """Why a proposed question is not different from the record's, or None."""
    own = as_text(record["question"])
    if not re.search(r"\w", question):
        return "the proposed question has no words"
    if looks_like_error(question):
        return "the proposed question is an error text"
    last_turn = own if isinstance(record["question"], str) else record["question"][-1]["content"]
    if any(is_same_question(text, question) for text in (own, last_turn)):
        return "the proposed question is the record's own in nearly the same words"
    return None


def is_same_question(first: str, second: str) -> bool:
    """Whether two questions agree in nearly all of their words (Chinese: characters), case and punctuation aside."""
    first, second = (re.findall(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+", text.casefold()) for text in (first, second))
    matcher = difflib.SequenceMatcher(None, first, second, False)
    # The quick ratios are upper bounds of the ratio, which alone is slow.
    ratios = (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio)
    return all(ratio() >= TOO_SIMILAR for ratio in ratios)


# --- Without an LLM: another record's question ----------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """Another record's question and chosen answer, with what they are compared by."""

    name: str
    question: str
    answer: str
    language: str
    words: frozenset[str]


def make_pool(records: Iterable[dict], seed: int, size: int = POOL_SIZE) -> list[Candidate]:
    """At most ``size`` records as candidates, drawn by seed and content and not by their order; one streaming pass."""
    drawn = heapq.nsmallest(size, _hashed_questions(records, seed))
    return [Candidate(name, text, answer, language(text), words(text)) for name, text, answer in drawn]


def _hashed_questions(records: Iterable[dict], seed: int) -> Iterator[tuple[str, str, str]]:
    for record in records:
        if isinstance(record["question"], str) and not looks_like_error(record["chosen"]):
            yield content_hash(seed, record["question"], record["chosen"]), record["question"], record["chosen"]


async def _from_pool(record: dict, ask: Ask, pool: Sequence[Candidate]) -> tuple[str, str]:
    found = best_candidate(record, pool)
    row_id = str(record["id"])
    if found is None:
        ask.failed("similar_question", "no_candidate", "no other record's question is different enough and can be used")
        raise CallFailed("no_candidate", "no other record")
    question = await ask(Call(f"{row_id}/similar_question/0", [], {"kind": "quote", "text": found.question}))
    answer = await ask(Call(f"{row_id}/gptinst_answer/0", [], {"kind": "quote", "text": found.answer}))
    return question.text, answer.text


def best_candidate(record: dict, pool: Sequence[Candidate]) -> Candidate | None:
    """The candidate nearest in wording; the same language and an answer of similar length come first."""
    own = as_text(record["question"])
    own_words, own_language, size = words(own), language(own), len(record["chosen"])
    low, high = LENGTH_SPAN

    def rank(candidate: Candidate) -> tuple:
        fits = low * size <= len(candidate.answer) <= high * size
        return (
            candidate.language == own_language,
            fits,
            _overlap(own_words, candidate.words),
            -abs(len(candidate.answer) - size),
            candidate.name,
        )

    for candidate in heapq.nlargest(20, pool, key=rank):
        same_answer = normal_space(candidate.answer) == normal_space(record["chosen"])
        if not same_answer and question_problem(record, candidate.question) is None:
            return candidate
    return None


def words(text: str) -> frozenset[str]:
    """Lower-case words, and pairs of neighbouring Chinese characters."""
    chinese = re.findall(r"(?=([\u3400-\u9fff]{2}))", text)
    return frozenset(re.findall(r"[^\W\d_\u3400-\u9fff]{2,}", text.casefold())) | frozenset(chinese)


def wording_overlap(first: str, second: str) -> float:
    """Shared words over all words of two texts (Jaccard index), 0 to 1."""
    return _overlap(words(first), words(second))


def _overlap(first: frozenset[str], second: frozenset[str]) -> float:
    both = len(first & second)
    either = len(first) + len(second) - both
    return both / either if either else 0.0


if __name__ == "__main__":
    run_main(main)
