"""Loading the sequence classifier that a reward model is: a whole one, a language model's body with a fresh head, a
body with a pooling of ours, or a base model with a LoRA adapter merged in.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from codes.common.conversation import LOADING_ERRORS, first_line, raise_if_unreachable
from codes.common.records import InputError
from codes.train.adapters import adapter_config, merge_adapter
from codes.train.pooling import pooled_config
from codes.train.reward_heads import ONE_HEAD, RewardHeads, heads_in, heads_of_adapter

if TYPE_CHECKING:
    from peft import LoraConfig

logger = logging.getLogger(__name__)

# Architectures that may get a fresh head. Others that are no classifier (a reward model of another library, a token
# classifier) have a head of their own, which would silently be lost.
HEADLESS_SUFFIXES = ("ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForPreTraining", "ForConditionalGeneration")


class LoadedClassifier(NamedTuple):
    """A classifier, its pooling, and the layers that have no weights of the model they come from."""

    model: PreTrainedModel
    pooling: str
    fresh_layers: list[str]


def load_classifier(
    model_path: str,
    *,
    dtype: torch.dtype,
    new_head: bool,
    heads: RewardHeads | None = None,
    pooling: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **model_options,
) -> LoadedClassifier:
    """Load a reward model, or with ``new_head`` also a language model, which gets a fresh head, or those of ``heads``.

    A reward model may be given another rule for its heads, but no other heads. Raises InputError for a folder or name
    that cannot be loaded, a classifier with several labels that are no heads of ours, a model without a trained head
    (unless ``new_head``), a model with a head of another kind, weights that do not fit the architecture or are missing,
    and a pooling that the model cannot have; RunFailed where the Hub cannot be reached.
    """
    source = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config, own_pooling = pooled_config(model_path, **source) or (
            AutoConfig.from_pretrained(model_path, **source),
            "last",
        )
        is_classifier = _is_classifier(config)
        own_heads = (heads_in(vars(config), f"{model_path}: config.json") if is_classifier else None) or ONE_HEAD
        if is_classifier and config.num_labels != len(own_heads.names):
            raise InputError(f"{model_path}: has {config.num_labels} labels; a reward model has exactly one")
        if is_classifier:
            _require_same_heads(model_path, own_heads, heads)
        if not is_classifier and not new_head:
            raise InputError(f"{model_path}: {_architecture(config)} has no reward head; train one from it first")
        if not is_classifier and not _may_get_head(config):
            raise InputError(f"{model_path}: {_architecture(config)} has a head that would be lost")
        (heads or own_heads).describe_in(config)
        with _without_loading_report():
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                model_path, config=config, dtype=dtype, output_loading_info=True, **source, **model_options
            )
        pooling = _fitting_pooling(model, pooling or own_pooling, model_path)
    except InputError:
        raise
    except (*LOADING_ERRORS, RuntimeError, SafetensorError) as error:
        raise_if_unreachable(model_path, error)
        raise InputError(f"{model_path}: cannot be loaded as a reward model: {first_line(error)}") from None
    missing = sorted(loading["missing_keys"])
    lost = [name for name in missing if is_classifier or not _starts_fresh(model, name)]
    if lost:
        raise InputError(f"{model_path}: weights are missing, {lost[0]} among {len(lost)}")
    return LoadedClassifier(model, pooling, sorted({name.rpartition(".")[0] for name in missing}))


def load_merged(
    model_path: str,
    adapter: "LoraConfig",
    *,
    vocabulary: int,
    dtype: torch.dtype,
    heads: RewardHeads | None = None,
    pooling: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    above: tuple[str, ...] = (),
    **model_options,
) -> LoadedClassifier:
    """The adapter's base model with the adapter merged in, in float32, and only then in ``dtype``.

    ``vocabulary``: the number of the adapter's tokens, which may be more than the base model's; ``above``: the
    adapters that have this one as their base.
    """
    if is_deepspeed_zero3_enabled() or "quantization_config" in model_options:
        raise InputError(
            f"{model_path}: is an adapter, which cannot be merged under ZeRO-3 or in 4 bits; merge it with "
            "codes.train.export first"
        )
    if model_path in above:
        raise InputError(f"{model_path}: field 'base_model_name_or_path': leads back to the adapter itself")
    try:
        own = pooled_config(model_path, revision=revision)
    except OSError:
        own = None  # an adapter folder has a config.json only where it has to name its pooling
    own_heads = heads_of_adapter(model_path, revision)
    _require_same_heads(model_path, own_heads or ONE_HEAD, heads)
    base = adapter.base_model_name_or_path
    logger.info("%s: an adapter, merged into its base model %s", model_path, base)
    options = model_options | {
        "dtype": torch.float32,
        "heads": heads or own_heads,
        "pooling": pooling or (own and own[1]),
        "revision": adapter.revision,
        "trust_remote_code": trust_remote_code,
    }
    try:
        nested = adapter_config(base, adapter.revision)
        if nested is None:
            loaded = load_classifier(base, new_head=True, **options)
        else:
            loaded = load_merged(base, nested, vocabulary=vocabulary, above=(*above, model_path), **options)
    except InputError as error:
        raise InputError(
            f"{model_path}: its base model (base_model_name_or_path in adapter_config.json): {error}"
        ) from None
    fit_embeddings(loaded.model, vocabulary)
    model = merge_adapter(loaded.model, adapter, model_path, revision)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)  # parameters alone: buffers of positions stay exact
    return LoadedClassifier(model, loaded.pooling, [])


def _require_same_heads(model_path: str, own: RewardHeads, wanted: RewardHeads | None) -> None:
    if wanted is not None and wanted.names != own.names:
        flag = f"--objectives {' '.join(own.names)}" if own.are_objectives else f"--heads {len(own.names)}"
        raise InputError(f"{model_path}: has other heads than those asked for; its own are trained with {flag}")


def fit_embeddings(model: PreTrainedModel, vocabulary: int) -> None:
    """Add rows to the embeddings where the tokenizer has more tokens."""
    if vocabulary > model.config.get_text_config().vocab_size:
        model.resize_token_embeddings(vocabulary, mean_resizing=False)


def _fitting_pooling(model: PreTrainedModel, pooling: str, model_path: str) -> str:
    """The pooling that we have to do: ``last`` also where the stock class does what was asked for."""
    if pooling == "last" or isinstance(getattr(model, "score", None), torch.nn.Linear):
        return pooling
    if pooling == "mean" and hasattr(model.config, "classifier_pooling"):
        model.config.classifier_pooling = "mean"
        return "last"
    raise InputError(f"--pooling {pooling}: {model_path} is an encoder, whose stock class pools in its own way")


@contextmanager
def _without_loading_report() -> Iterator[None]:
    # A table of the new head's keys; what must not be missing is an error of our own.
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)


_UNKNOWN = "a model of unknown architecture"


def _architecture(config) -> str:
    return (getattr(config, "architectures", None) or [_UNKNOWN])[0]


def _may_get_head(config) -> bool:
    # A bare body is a "Model" without a "For": Qwen2ForRewardModel has a head.
    architecture = _architecture(config)
    bare = architecture.endswith("Model") and "For" not in architecture
    return bare or architecture == _UNKNOWN or architecture.endswith(HEADLESS_SUFFIXES)


def _starts_fresh(model: PreTrainedModel, name: str) -> bool:
    # The head, and the pooling layer in front of it, which masked language models do not have.
    return not name.startswith(f"{model.base_model_prefix}.") or ".pooler." in name


def _is_classifier(config) -> bool:
    return _architecture(config).endswith("ForSequenceClassification")
