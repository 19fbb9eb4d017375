"""How much faster is scoring here than the way the public evaluation script works?

    python -m benchmarks.bench_evaluation --data_dir ../shared/data/contrastrm-eval --rows 40

The public way: each bias file by itself, rows in input order, four sequences a pair, batches of 32 padded to their
longest. Here: every distinct conversation once, the answers to a question together, prompts computed once. Both score
with the same randomly initialised model in float32; the ratio of the two times is printed, with the tokens that each
computes and the largest difference between their scores.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers

from codes.common.cli import command_parser, positive_int, run_main
from codes.common.conversation import encode, pad_batch
from codes.common.records import PAIRWISE_BIASES, InputError, check_bias_pair, read_jsonl
from codes.evaluate.model_scorer import ModelScorer
from codes.evaluate.scorers import Conversation
from codes.train.reward_model import RewardModel
from codes.train.tiny_model import make_tiny_model

RESPONSES = ("original_response1", "original_response2", "rewritten_response1", "rewritten_response2")


def read_files(data_dir: Path, rows: int) -> list[list[Conversation]]:
    """The conversations of each pairwise bias file, four a row, in input order."""
    files = []
    for bias in PAIRWISE_BIASES:
        path = data_dir / f"{bias}_bias.jsonl"
        if path.exists():
            pairs = read_jsonl(path, check_bias_pair)[:rows]
            files.append([Conversation(pair["question"], pair[field]) for pair in pairs for field in RESPONSES])
    if not files:
        raise InputError(f"--data_dir {data_dir}: holds no <bias>_bias.jsonl")
    return files


@torch.inference_mode()
def public_way(
    model: RewardModel, files: list[list[Conversation]], max_length: int, batch: int
) -> tuple[dict[str, float], int]:
    """Scores by conversation, and the tokens computed, padding included."""
    scores, tokens = {}, 0
    for conversations in files:
        for start in range(0, len(conversations), batch):
            part = conversations[start : start + batch]
            rows = [encode(model.tokenizer, c.question, c.answer, max_length).ids for c in part]
            inputs = pad_batch(rows, model.pad_id)
            tokens += inputs["input_ids"].numel()
            logits = model.model(**inputs).logits.squeeze(-1)
            scores.update({c.key: score for c, score in zip(part, logits.tolist())})
    return scores, tokens


def our_way(scorer: ModelScorer, files: list[list[Conversation]]) -> tuple[dict[str, float], int]:
    """The same through the scorer of ``eval_rm``."""
    distinct = {conversation.key: conversation for conversations in files for conversation in conversations}
    scores, tokens = {}, 0
    layout = scorer.model.layout

    def counting(groups):
        nonlocal tokens
        inputs = layout(groups)
        tokens += inputs["input_ids"].numel()
        return inputs

    scorer.model.layout = counting
    for batch in scorer.plan(list(distinct.values())):
        scores.update({c.key: score for c, score in zip(batch.conversations, scorer.score(batch))})
    scorer.model.layout = layout
    return scores, tokens


def main() -> None:
    parser = command_parser(__doc__, "benchmarks.bench_evaluation")
    parser.add_argument("--data_dir", type=Path, default=Path("data/eval"), help="folder of <bias>_bias.jsonl files")
    parser.add_argument("--rows", type=positive_int, default=10**9, help="rows of each file")
    parser.add_argument("--model_path", help="a reward model; without one a randomly initialised one is made")
    parser.add_argument("--max_length", type=positive_int, default=1024, help="tokens of one conversation")
    parser.add_argument(
        "--repeats", type=positive_int, default=3, help="runs of each way, taken in turn; medians count"
    )
    parser.add_argument("--seed", type=int, default=42, help="of the model's weights")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    files = read_files(args.data_dir, args.rows)
    with tempfile.TemporaryDirectory() as folder:
        path = args.model_path or make_reward_model(folder, files, args.seed)
        options = {"max_length": args.max_length, "dtype": "fp32", "device": "cpu"}
        stock = ModelScorer.load(path, batch_size=32, prefix_sharing="off", **options).model
        scorer = ModelScorer.load(path, batch_size=32, **options)
    seconds: dict[str, list[float]] = {"public": [], "ours": []}
    for _ in range(args.repeats):
        started = time.perf_counter()
        public, public_tokens = public_way(stock, files, args.max_length, batch=32)
        seconds["public"].append(time.perf_counter() - started)
        started = time.perf_counter()
        ours, our_tokens = our_way(scorer, files)
        seconds["ours"].append(time.perf_counter() - started)
    medians = {way: statistics.median(times) for way, times in seconds.items()}
    difference = max(abs(public[key] - ours[key]) for key in ours)
    print(f"pairs {sum(map(len, files)) // 4}, distinct conversations {len(ours)}, threads {torch.get_num_threads()}")
    print(f"public way: {medians['public']:8.1f} s, {public_tokens:>10,} tokens with padding")
    print(f"here:       {medians['ours']:8.1f} s, {our_tokens:>10,} tokens")
    print(f"ratio:      {medians['public'] / medians['ours']:.2f} in time, {public_tokens / our_tokens:.2f} in tokens")
    print(f"largest difference between scores: {difference:.1e}")
    if difference > 1e-4:
        sys.exit("error: the scores differ by more than 1e-4")


def make_reward_model(folder: str, files: list[list[Conversation]], seed: int) -> str:
    """A small randomly initialised reward model with a vocabulary made from the texts."""
    language_model, reward_model = f"{folder}/lm", f"{folder}/rm"
    texts = (text for file in files for c in file for text in (str(c.question), c.answer))
    make_tiny_model(language_model, texts, seed=seed, vocab_size=8192, hidden_size=256, layers=6)
    torch.manual_seed(seed)
    model = RewardModel.from_pretrained(language_model, new_head=True)
    model.save_pretrained(reward_model)
    return reward_model


if __name__ == "__main__":
    run_main(main)
