"""The scorer ``model``: a reward model on this machine."""

import logging
import math
import os
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import torch
import transformers
from transformers.utils import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from codes.common.cli import RunFailed, rank_of_this_process
from codes.common.conversation import fitting_max_length, is_local, template_hash
from codes.common.records import InputError, content_hash, file_sha256
from codes.evaluate.batching import plan_batches
from codes.evaluate.custom_head import CustomHeadModel, custom_class
from codes.evaluate.encoding import rendered_groups, tokenised
from codes.evaluate.scorers import Batch, Conversation
from codes.evaluate.stored_temperature import FACT, read_temperature
from codes.train.adapters import adapter_config
from codes.train.reward_model import DTYPES, RewardModel

logger = logging.getLogger(__name__)

# What of a model folder decides its scores, besides the chat template, which has a hash of its own.
WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
OTHER_MODEL_FILES = (
    "config.json",
    "adapter_config.json",
    "reward_heads.json",
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
# Tokens in one forward. More than a CPU's caches hold is slower; a GPU wants enough to be busy, and halves what it has
# no memory for.
TOKENS_PER_BATCH = {"cpu": 4096, "cuda": 32768}
ALLOCATORS = ("DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED")


class ModelScorer:
    """Raw scores of a reward model; the answers to a question are scored together, the longest first.

    ``heads`` is None unless there are several, or one of an objective: then ``score`` gives theirs, too.
    """

    keeps_scores = True

    def __init__(
        self,
        model: RewardModel | CustomHeadModel,
        *,
        weights_hash: str,
        batch_size: int,
        tokens_per_batch: int | None = None,
        max_length: int,
        dtype: str,
    ):
        self.model = model.eval()
        self.heads = model.heads if isinstance(model, RewardModel) and not model.heads.are_plain else None
        self.device = model.model.device
        self.batch_size = batch_size
        self.tokens_per_batch = tokens_per_batch or TOKENS_PER_BATCH.get(self.device.type, TOKENS_PER_BATCH["cuda"])
        self.tokens_that_fit = math.inf
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
        tokens_per_batch: int | None = None,
        dtype: str | None = None,
        device: str = "auto",
        device_map: str | None = None,
        revision: str | None = None,
        prefix_sharing: str = "auto",
        trust_remote_code: bool = False,
        weights_sha256: str | None = None,
        **options,
    ) -> "ModelScorer":
        """Load the model from a folder or the Hub; ``options`` go to ``RewardModel.from_pretrained``.

        With ``device_map`` accelerate spreads it over the devices there are. ``weights_sha256`` is given where it is
        known already: to hash the files takes as long as to read them.
        """
        quiet_transformers()
        device = best_device(device)
        dtype = dtype or usual_dtype(device)
        if device_map is not None:
            options["device_map"] = device_map
        custom = custom_class(model_path, revision=revision, trust_remote_code=trust_remote_code)
        if custom is None:
            options["trust_remote_code"] = trust_remote_code
            model = RewardModel.from_pretrained(model_path, dtype=DTYPES[dtype], revision=revision, **options)
        else:
            model = CustomHeadModel.from_pretrained(
                model_path, custom, dtype=DTYPES[dtype], revision=revision, **options
            )
        if device_map is None:
            model.to(device)
        model.share_prefixes(prefix_sharing)
        scorer = cls(
            model,
            weights_hash=weights_sha256 or weights_hash(model_path, revision),
            batch_size=batch_size,
            tokens_per_batch=tokens_per_batch,
            max_length=max_length,
            dtype=dtype,
        )
        temperature = read_temperature(model_folder(model_path, revision), scorer.identity)
        if temperature is not None:
            scorer.facts[FACT] = temperature
        return scorer

    def plan(self, conversations: Sequence[Conversation]) -> list[Batch]:
        """Render everything, so that a conversation the template refuses is found at once, and fill batches."""
        return plan_batches(
            rendered_groups(self.model.tokenizer, conversations),
            most_conversations=self.batch_size,
            most_tokens=self.tokens_per_batch,
            most_tokens_each=self.max_length,
            shares_prompts=self.model.layout.least_saving is not None,
        )

    def prepare(self, batch: Batch) -> Batch:
        return tokenised(self.model.tokenizer, batch, self.max_length)

    def score(self, batch: Batch) -> list[float] | list[list[float]]:
        by_question = groupby(zip(batch.conversations, batch.ids), key=lambda pair: pair[0].question)
        waiting = [[[ids for _, ids in group] for _, group in by_question]]
        scores: list = []
        while waiting:
            groups = waiting.pop()
            tokens = sum(len(ids) for group in groups for ids in group)
            conversations = sum(map(len, groups))
            found = None
            if tokens <= self.tokens_that_fit or conversations == 1:
                found = self._scores_if_they_fit(groups)
                if found is None:
                    self._remember_what_does_not_fit(tokens)
            if found is not None:
                scores += found
            elif conversations > 1:
                waiting += reversed(_halves(groups))
            else:
                where = batch.conversations[len(scores)].where
                raise RunFailed(f"{where}: no memory for this one conversation of {tokens} tokens; lower --max_length")
        return scores

    def _scores_if_they_fit(self, groups: list[list[list[int]]]) -> list[float] | list[list[float]] | None:
        """None where memory does not suffice."""
        try:
            inputs = self.model.layout(groups)
            return self.forward(inputs) if self.heads is None else self.forward_with_heads(inputs)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # Only now, without the error, is what it held on to free.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None

    def _remember_what_does_not_fit(self, tokens: int) -> None:
        if self.tokens_that_fit == math.inf:
            logger.warning("out of memory with %d tokens in one forward; halving batches from here on", tokens)
        self.tokens_that_fit = max(1, tokens // 2)

    @torch.inference_mode()
    def forward(self, inputs: dict) -> list[float]:
        """Scores of what a layout has put together."""
        return self.model(**self._on_device(inputs)).tolist()

    @torch.inference_mode()
    def forward_with_heads(self, inputs: dict) -> list[list[float]]:
        """The score of each conversation and those of the heads that it is combined of."""
        of_heads = self.model(**self._on_device(inputs), per_head=True)
        return torch.cat((self.heads.combined(of_heads).unsqueeze(1), of_heads), dim=1).tolist()

    def _on_device(self, inputs: dict) -> dict:
        return {n: v.to(self.device) if isinstance(v, torch.Tensor) else v for n, v in inputs.items()}


def _halves(groups: list[list[list[int]]]) -> list[list[list[list[int]]]]:
    """Groups of conversations in two parts; one group by its conversations."""
    if len(groups) == 1:
        half = len(groups[0]) // 2
        return [[groups[0][:half]], [groups[0][half:]]]
    half = len(groups) // 2
    return [groups[:half], groups[half:]]


def is_out_of_memory(error: RuntimeError) -> bool:
    """CUDA says so by type, matrix libraries and the CPU's allocator by their message."""
    return isinstance(error, torch.OutOfMemoryError) or any(name in str(error) for name in ALLOCATORS)


def model_files_hash(folder: Path) -> str:
    """SHA-256 over names and contents of the files in a model folder that decide its scores."""
    files = sorted({path for pattern in (*WEIGHT_FILES, *OTHER_MODEL_FILES) for path in folder.glob(pattern)})
    return content_hash([[path.name, file_sha256(path)] for path in files if path.is_file()])


def weights_hash(model_path: str, revision: str | None = None, *, task_type: str = "SEQ_CLS") -> str:
    """``model_files_hash`` of the model; of an adapter, together with that of its base model."""
    own = model_files_hash(model_folder(model_path, revision))
    adapter = adapter_config(model_path, revision, task_type=task_type)
    if adapter is None:
        return own
    return content_hash(own, weights_hash(adapter.base_model_name_or_path, adapter.revision, task_type=task_type))


def model_folder(model_path: str, revision: str | None) -> Path:
    """The folder itself, or where the Hub's cache holds the revision that was loaded."""
    if is_local(model_path):
        return Path(model_path)
    named = find_adapter_config_file(model_path, revision=revision)
    return Path(named or cached_file(model_path, "config.json", revision=revision)).parent


def best_device(wanted: str) -> str:
    """The device of this process; each rank of a node takes a GPU of its own."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no CUDA device here")
    if wanted == "cpu" or not torch.cuda.is_available():
        return "cpu"
    if rank_of_this_process()[1] == 1:
        return "cuda"
    local_rank, devices = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local_rank >= devices:
        raise InputError(f"more ranks than GPUs: this node has {devices}; start as many ranks with --nproc_per_node")
    return f"cuda:{local_rank}"


def usual_dtype(device: str) -> str:
    """The precision where none is asked for."""
    return "bf16" if device.startswith("cuda") else "fp32"


def quiet_transformers() -> None:
    # Its loading report and hints concern other uses of a checkpoint; what matters here RewardModel checks itself.
    transformers.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()
