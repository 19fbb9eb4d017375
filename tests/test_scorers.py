"""What a score may and may not depend on, and that each is paid for once."""

import json
import shutil
from argparse import Namespace

import pytest
import torch

from codes.common.cli import RunFailed
from codes.common.records import InputError
from codes.evaluate.model_scorer import ModelScorer, model_files_hash
from codes.evaluate.results import model_name
from codes.evaluate.scorers import Batch, Conversation, LengthScorer, RandomScorer
from codes.evaluate.scoring import score_conversations

CONVERSATIONS = [
    Conversation("What is the capital of France?", "Paris."),
    Conversation("What is the capital of France?", "It is Paris, on the Seine, and has been for a long time. " * 8),
    Conversation([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "6 * 7?"}], "42"),
    Conversation("水的沸点是多少？", "一百摄氏度。"),
    Conversation("Write add in Python.", "def add(a, b):\n    return a + b\n"),
    Conversation("Write add in Python.", "def add(a, b):\n    return a - b\n"),
    Conversation("Say nothing of use.", "word " * 150),
]


@pytest.fixture
def model_scorer(tiny_reward_model):
    def load(batch_size=32, **options):
        options = {"max_length": 512, "device": "cpu"} | options
        return ModelScorer.load(str(tiny_reward_model), batch_size=batch_size, **options)

    return load


def scores_of(scorer, conversations, folder):
    scores = score_conversations(scorer, conversations, folder)
    return [scores[conversation] for conversation in conversations]


def test_length_counts_characters_of_the_answer_and_not_bytes(tmp_path):
    assert scores_of(LengthScorer(), CONVERSATIONS[2:5], tmp_path) == [2.0, 6.0, 32.0]
    assert not any(tmp_path.iterdir())


def test_random_scores_depend_on_seed_and_conversation_and_not_on_order(tmp_path):
    forward = scores_of(RandomScorer(7), CONVERSATIONS, tmp_path)
    backward = scores_of(RandomScorer(7), CONVERSATIONS[::-1], tmp_path)
    assert forward == backward[::-1]
    assert len(set(forward)) == len(CONVERSATIONS)
    assert all(0 <= score < 1 for score in forward)
    assert scores_of(RandomScorer(8), CONVERSATIONS, tmp_path) != forward


def test_model_scores_do_not_depend_on_the_batch(model_scorer, tmp_path):
    alone = scores_of(model_scorer(batch_size=1), CONVERSATIONS, tmp_path / "1")
    for batch_size in (3, 32):
        together = scores_of(model_scorer(batch_size=batch_size), CONVERSATIONS, tmp_path / str(batch_size))
        assert together == pytest.approx(alone, abs=1e-4)
    assert max(alone) - min(alone) > 0.1


def test_model_scores_equal_those_of_the_stock_class(model_scorer, tiny_reward_model, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(tiny_reward_model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_reward_model)
    stock = []
    for conversation in CONVERSATIONS[3:6]:
        turns = [{"role": "user", "content": conversation.question}]
        turns.append({"role": "assistant", "content": conversation.answer})
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        with torch.no_grad():
            stock.append(model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits.item())
    assert scores_of(model_scorer(), CONVERSATIONS[3:6], tmp_path) == pytest.approx(stock, abs=1e-4)


class CountingScorer(LengthScorer):
    """The length scorer, kept in a store like a model's, counting what it is asked for."""

    keeps_scores = True

    def __init__(self, values=None):
        super().__init__()
        self.scored = 0
        self.values = values

    def plan(self, conversations):
        return [Batch(list(conversations[i : i + 2])) for i in range(0, len(conversations), 2)]

    def score(self, batch):
        self.scored += len(batch.conversations)
        return self.values or super().score(batch)


def test_equal_conversations_are_scored_once_and_stored_ones_not_again(tmp_path):
    first, second = CountingScorer(), CountingScorer()
    score_conversations(first, CONVERSATIONS * 3, tmp_path)
    assert first.scored == len(CONVERSATIONS)
    more = [*CONVERSATIONS, Conversation("new", "question")]
    assert scores_of(second, more, tmp_path) == [float(len(c.answer)) for c in more]
    assert second.scored == 1


def test_a_torn_last_line_of_the_store_costs_one_batch_and_nothing_else(tmp_path):
    expected = scores_of(CountingScorer(), CONVERSATIONS, tmp_path)
    [store] = (tmp_path / "score_store").iterdir()
    store.write_bytes(store.read_bytes()[:-5])
    again = CountingScorer()
    assert scores_of(again, CONVERSATIONS, tmp_path) == expected
    assert again.scored == 1  # seven conversations in twos: the last batch had one


@pytest.mark.parametrize(
    "line",
    ['{"conversations": ["a"], "scores": [1, 2]}', '{"conversations": ["a"], "scores": ["x"]}', "{}", "not json"],
)
def test_a_damaged_store_is_an_error_naming_file_and_line(tmp_path, line):
    score_conversations(CountingScorer(), CONVERSATIONS, tmp_path)
    [store] = (tmp_path / "score_store").iterdir()
    with open(store, "a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=rf"{store.name}:6: field"):
        score_conversations(CountingScorer(), CONVERSATIONS, tmp_path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_no_finite_number_names_the_row_and_is_not_stored(tmp_path, bad):
    rows = [Conversation("q", "one", "pairs.jsonl:1"), Conversation("q", "two", "pairs.jsonl:2")]
    with pytest.raises(RunFailed, match=r"pairs\.jsonl:2: the score is (nan|inf)"):
        score_conversations(CountingScorer(values=[0.5, bad]), rows, tmp_path)
    [store] = (tmp_path / "score_store").iterdir()
    assert list(map(json.loads, store.read_text().splitlines())) == [{"configuration": {"scorer": "length"}}]


def test_each_dtype_and_max_length_has_a_store_of_its_own(model_scorer, tmp_path):
    for options in ({}, {"dtype": "bf16"}, {"max_length": 64}):
        score_conversations(model_scorer(**options), CONVERSATIONS[:2], tmp_path)
    assert len(list((tmp_path / "score_store").iterdir())) == 3


def test_truncation_is_counted(model_scorer, tmp_path):
    scores = score_conversations(model_scorer(max_length=40), CONVERSATIONS, tmp_path)
    counts = scores.truncation(conversation.key for conversation in CONVERSATIONS)
    assert counts["conversations"] == 7
    assert counts["answer_truncated"] == 2  # the two long answers
    assert counts["prompt_truncated"] >= 2


def more_memory_than_there_is():
    """Ends in the error of the CPU's own allocator."""
    torch.empty(1 << 60, dtype=torch.uint8)


def cuda_memory_that_is_used_up():
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("failing", [more_memory_than_there_is, cuda_memory_that_is_used_up])
@pytest.mark.parametrize("prefix_sharing", ["on", "off"])
def test_a_batch_that_does_not_fit_is_halved_which_is_said_once_and_remembered(
    model_scorer, tmp_path, monkeypatch, caplog, prefix_sharing, failing
):
    expected = scores_of(model_scorer(batch_size=1), CONVERSATIONS, tmp_path / "1")
    scorer = model_scorer(prefix_sharing=prefix_sharing, tokens_per_batch=900)
    forward, tried = type(scorer.model).forward, []

    def forward_of_few_tokens(model, **inputs):
        tokens = sum(attended(inputs))
        tried.append(tokens)
        if tokens > 520:
            failing()
        return forward(model, **inputs)

    def attended(inputs):
        return inputs["attention_mask"].sum(-1).tolist() if "attention_mask" in inputs else [inputs["read_at"][-1] + 1]

    monkeypatch.setattr(type(scorer.model), "forward", forward_of_few_tokens)
    assert scores_of(scorer, CONVERSATIONS, tmp_path / "2") == pytest.approx(expected, abs=1e-4)
    assert caplog.text.count("halving batches") == 1
    failed = [tokens for tokens in tried if tokens > 520]
    assert failed
    assert failed == tried[: len(failed)]  # what is known not to fit is not tried again
    limit = scorer.tokens_that_fit
    scores_of(scorer, CONVERSATIONS, tmp_path / "3")
    assert scorer.tokens_that_fit == limit


def test_one_conversation_that_does_not_fit_is_named_and_other_errors_are_left_alone(
    model_scorer, tmp_path, monkeypatch
):
    scorer = model_scorer()
    rows = [Conversation("q", "one", "pairs.jsonl:1"), Conversation("q", "one two", "pairs.jsonl:2")]
    monkeypatch.setattr(type(scorer.model), "forward", lambda model, **inputs: more_memory_than_there_is())
    with pytest.raises(RunFailed, match=r"pairs\.jsonl:2: no memory for this one conversation of \d+ tokens"):
        scores_of(scorer, rows, tmp_path)
    monkeypatch.setattr(type(scorer.model), "forward", lambda model, **inputs: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):
        scores_of(scorer, rows, tmp_path)


def test_the_weights_hash_sees_weights_and_vocabulary_and_nothing_else(tiny_reward_model, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(tiny_reward_model, folder)
    before = model_files_hash(folder)
    (folder / "trainer_state.json").write_text("{}")
    (folder / "README.md").write_text("a note")
    assert model_files_hash(folder) == before == model_files_hash(tiny_reward_model)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert model_files_hash(folder) != before


@pytest.mark.parametrize(
    "name", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "qwen.tiktoken"]
)
def test_a_mended_tokenizer_file_makes_another_model(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    before = model_files_hash(tmp_path)
    (tmp_path / name).write_text('{"eos_token": "<wrong>"}')
    added = model_files_hash(tmp_path)
    (tmp_path / name).write_text('{"eos_token": "<right>"}')
    assert len({before, added, model_files_hash(tmp_path)}) == 3


def test_cuda_without_a_device_is_said_plainly(model_scorer):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with pytest.raises(InputError, match="--device cuda"):
        model_scorer(device="cuda")


@pytest.mark.parametrize(
    ("path", "given", "scorer", "expected"),
    [
        ("output/run 1/", None, "model", "run_1"),
        ("Qwen/Qwen3-0.6B", None, "model", "Qwen3-0.6B"),
        (None, None, "length", "length"),
        ("output/run", None, "random", "random"),
        ("output/three seeds.json", None, "ensemble", "three_seeds"),
        ("output/run", "../../etc/passwd", "model", ".._.._etc_passwd"),
        ("output/run", "模型7b", "model", "__7b"),
    ],
)
def test_result_names_hold_letters_digits_dots_underscores_and_hyphens_only(path, given, scorer, expected):
    assert model_name(Namespace(model_path=path, model_name=given, scorer=scorer)) == expected


def test_a_name_too_long_for_the_longest_file_name_is_refused():
    from codes.evaluate.results import LONGEST_NAME

    args = Namespace(model_path="m", model_name="a" * LONGEST_NAME, scorer="model")
    longest = f".{'b' * 60}_{model_name(args)}.jsonl.run_info.json.12345678.tmp"
    assert len(longest) <= 255
    for path, given in (("m", "a" * (LONGEST_NAME + 1)), ("x/" + "a" * 201, None)):
        with pytest.raises(InputError, match="characters, more than the"):
            model_name(Namespace(model_path=path, model_name=given, scorer="model"))


@pytest.mark.parametrize("given", ["", "..", "模型"])
def test_a_name_without_letters_or_digits_is_refused(given):
    with pytest.raises(InputError, match="--model_name"):
        model_name(Namespace(model_path="output/run", model_name=given, scorer="model"))
