"""The scorer ``model``: a reward model on this machine."""

import logging
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import torch
import transformers
from transformers.utils import cached_file

from codes.common.conversation import (
    EncodedConversation,
    encode_group,
    fitting_max_length,
    is_local,
    template_hash,
)
from codes.common.records import InputError, content_hash, file_sha256, to_json
from codes.evaluate.scorers import Batch, Conversation
from codes.train.reward_model import DTYPES, RewardModel

logger = logging.getLogger(__name__)

# What of a model folder decides its scores, besides the chat template, which has a hash of its own.
WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
OTHER_MODEL_FILES = (
    "config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "*.py",
)


class ModelScorer:
    """Raw logits of a reward model; the answers to a question are scored together, the longest first."""

    has_logit = keeps_scores = True

    def __init__(
        self, model: RewardModel, *, weights_hash: str, batch_size: int, max_length: int, dtype: str, device: str
    ):
        self.model = model.eval()
        self.device = device
        self.batch_size = batch_size
        self.max_length = fitting_max_length(max_length, model.tokenizer, model.config)
        self.identity = {
            "scorer": "model",
            "weights_sha256": weights_hash,
            "template_hash": template_hash(model.tokenizer),
            "dtype": dtype,
            "max_length": self.max_length,
        }
        self.facts = model.facts()

    @classmethod
    def load(
        cls,
        model_path: str,
        *,
        batch_size: int,
        max_length: int,
        dtype: str | None = None,
        device: str = "auto",
        revision: str | None = None,
        prefix_sharing: str = "auto",
        **options,
    ) -> "ModelScorer":
        """Load the model from a folder or the Hub; ``options`` go to ``RewardModel.from_pretrained``."""
        _quiet_transformers()
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        elif device == "cuda" and not torch.cuda.is_available():
            raise InputError("--device cuda: torch sees no CUDA device here")
        dtype = dtype or ("bf16" if device == "cuda" else "fp32")
        model = RewardModel.from_pretrained(model_path, dtype=DTYPES[dtype], revision=revision, **options)
        model.to(device).share_prefixes(prefix_sharing)
        return cls(
            model,
            weights_hash=model_files_hash(_model_folder(model_path, revision)),
            batch_size=batch_size,
            max_length=max_length,
            dtype=dtype,
            device=device,
        )

    def plan(self, conversations: Sequence[Conversation]) -> list[Batch]:
        """Tokenise, and fill batches with the answers to one question after another, the longest questions first.

        So rows of one batch need little padding, prompts can be shared, and memory runs out early if it does.
        """
        by_question: dict[str, list[Conversation]] = {}
        for conversation in conversations:
            by_question.setdefault(to_json(conversation.question), []).append(conversation)
        groups = []
        for group in by_question.values():
            answers = [conversation.answer for conversation in group]
            try:
                encodings = encode_group(self.model.tokenizer, group[0].question, answers, self.max_length)
            except InputError as error:
                raise InputError(f"{group[0].where}: {error}") from None
            encoded = sorted(zip(group, encodings), key=lambda pair: (-len(pair[1].ids), pair[0].key))
            groups += [encoded[start : start + self.batch_size] for start in range(0, len(encoded), self.batch_size)]
        groups.sort(key=lambda encoded: (-len(encoded[0][1].ids), encoded[0][0].key))
        return [_as_batch(part) for part in self._filled(groups)]

    def _filled(self, groups: list[list[tuple]]) -> Iterator[list[tuple]]:
        """Whole groups one after another into lists of at most ``batch_size`` conversations."""
        batch: list[tuple] = []
        for group in groups:
            if batch and len(batch) + len(group) > self.batch_size:
                yield batch
                batch = []
            batch = batch + group
        if batch:
            yield batch

    def score(self, batch: Batch) -> list[float]:
        by_question = groupby(zip(batch.conversations, batch.ids), key=lambda pair: pair[0].question)
        return self._forward([[ids for _, ids in group] for _, group in by_question])

    @torch.inference_mode()
    def _forward(self, groups: list[list[list[int]]]) -> list[float]:
        try:
            inputs = self.model.layout(groups)
            on_device = {n: v.to(self.device) if isinstance(v, torch.Tensor) else v for n, v in inputs.items()}
            return self.model(**on_device).tolist()
        except torch.OutOfMemoryError:
            if sum(map(len, groups)) == 1:
                raise
        logger.warning("out of memory with %d conversations in one forward; halving", sum(map(len, groups)))
        torch.cuda.empty_cache()
        if len(groups) == 1:
            groups = [[conversation] for conversation in groups[0]]
        half = len(groups) // 2
        return self._forward(groups[:half]) + self._forward(groups[half:])


def _as_batch(part: list[tuple[Conversation, EncodedConversation]]) -> Batch:
    return Batch(
        conversations=[conversation for conversation, _ in part],
        ids=[encoding.ids for _, encoding in part],
        prompt_cut=frozenset(conversation.key for conversation, encoding in part if encoding.prompt_cut),
        answer_cut=frozenset(conversation.key for conversation, encoding in part if encoding.answer_cut),
    )


def model_files_hash(folder: Path) -> str:
    """SHA-256 over names and contents of the files in a model folder that decide its scores."""
    files = sorted({path for pattern in (*WEIGHT_FILES, *OTHER_MODEL_FILES) for path in folder.glob(pattern)})
    return content_hash([[path.name, file_sha256(path)] for path in files if path.is_file()])


def _model_folder(model_path: str, revision: str | None) -> Path:
    """The folder itself, or where the Hub's cache holds the revision that was loaded."""
    if is_local(model_path):
        return Path(model_path)
    return Path(cached_file(model_path, "config.json", revision=revision)).parent


def _quiet_transformers() -> None:
    # Its loading report and hints concern other uses of a checkpoint; what matters here RewardModel checks itself.
    transformers.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()
