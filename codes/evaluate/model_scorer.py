"""The scorer ``model``: a reward model on this machine."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from transformers.utils import cached_file

from codes.common.conversation import encode_group, fitting_max_length, is_local, pad_batch, template_hash
from codes.common.records import InputError, content_hash, file_sha256, to_json
from codes.evaluate.scorers import Batch, Conversation
from codes.train.reward_model import DTYPES, RewardModel

logger = logging.getLogger(__name__)

# What of a model folder decides its scores, besides the chat template, which has a hash of its own.
WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
OTHER_MODEL_FILES = ("config.json", "adapter_config.json", "tokenizer.json", "vocab*", "merges.txt", "*.model", "*.py")


class ModelScorer:
    """Raw logits of a reward model, in batches of similar length, the longest first."""

    has_logit = keeps_scores = True

    def __init__(
        self, model: RewardModel, *, weights_hash: str, batch_size: int, max_length: int, dtype: str, device: str
    ):
        self.model = model.eval().to(device)
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
        return cls(
            model,
            weights_hash=model_files_hash(_model_folder(model_path, revision)),
            batch_size=batch_size,
            max_length=max_length,
            dtype=dtype,
            device=device,
        )

    def plan(self, conversations: Sequence[Conversation]) -> list[Batch]:
        """Tokenise and sort by length, so that rows of one batch need little padding and memory runs out early."""
        by_question: dict[str, list[Conversation]] = {}
        for conversation in conversations:
            by_question.setdefault(to_json(conversation.question), []).append(conversation)
        encoded = []
        for group in by_question.values():
            answers = [conversation.answer for conversation in group]
            encoded += zip(group, encode_group(self.model.tokenizer, group[0].question, answers, self.max_length))
        encoded.sort(key=lambda pair: (-len(pair[1].ids), pair[0].key))
        parts = [encoded[start : start + self.batch_size] for start in range(0, len(encoded), self.batch_size)]
        return [
            Batch(
                conversations=[conversation for conversation, _ in part],
                ids=[encoding.ids for _, encoding in part],
                prompt_cut=frozenset(conversation.key for conversation, encoding in part if encoding.prompt_cut),
                answer_cut=frozenset(conversation.key for conversation, encoding in part if encoding.answer_cut),
            )
            for part in parts
        ]

    def score(self, batch: Batch) -> list[float]:
        return self._forward(batch.ids)

    @torch.inference_mode()
    def _forward(self, rows: list[list[int]]) -> list[float]:
        try:
            inputs = {name: tensor.to(self.device) for name, tensor in pad_batch(rows, self.model.pad_id).items()}
            return self.model(**inputs).tolist()
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise
        logger.warning("out of memory with %d conversations in one forward; halving", len(rows))
        torch.cuda.empty_cache()
        half = len(rows) // 2
        return self._forward(rows[:half]) + self._forward(rows[half:])


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
