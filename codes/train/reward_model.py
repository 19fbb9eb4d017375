"""The reward model: a stock sequence classifier, a label a head, read and computed the way its scores can be trusted.

``RewardModel`` wraps what ``AutoModelForSequenceClassification`` loads. Decoders are read at the last attended token,
found from the attention mask and never from the pad id; encoders keep their class's own pooling. The head is computed
in float32 whatever the precision of the body. Several heads (``reward_heads``) give one score, too: how theirs are
combined is part of the model. The saved folder is a stock one. Decoders can share prompts between the answers of a
group (``codes.common.prefix_sharing``), which changes the time but not the scores.
"""

import inspect
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled

from codes.common.conversation import first_line, load_tokenizer
from codes.common.flex_spans import FLEX_ATTENTION
from codes.common.prefix_sharing import (
    LEAST_SAVING,
    SPAN_ATTENTION,
    BatchLayout,
    Spans,
    packed_mask,
    sharing_obstacle,
)
from codes.train.adapters import (
    ADAPTER_WEIGHTS,
    LoraSettings,
    adapter_config,
    add_adapter,
    load_adapter_weights,
    save_adapter,
)
from codes.train.classifier_loading import fit_embeddings, load_classifier, load_merged
from codes.train.pooling import mark_as_pooled, pool, pool_packed
from codes.train.reward_heads import ONE_HEAD, RewardHeads, heads_in

if TYPE_CHECKING:
    from peft import PeftModel

logger = logging.getLogger(__name__)

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# How far packed hidden states may be from those alone, relative to the largest: rounding is far below, an attention
# that misunderstands the layout far above.
SHARING_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
PAD_TOKEN = "<|contrastrm_pad|>"


class RewardModel(nn.Module):
    """Scores conversations: ``forward(input_ids, attention_mask)`` gives one float32 score a row."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pooling: str = "last"):
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        # A `score` layer is how every decoder class of transformers names its head; encoders name theirs otherwise.
        self.reads_last_token = isinstance(getattr(model, "score", None), nn.Linear)
        self.attention_implementation = model.config._attn_implementation
        self.layout = BatchLayout(self.pad_id)
        self.pooling = pooling
        self.heads = heads_in(vars(model.config), "config.json") or ONE_HEAD
        self.fresh_layers: list[str] = []  # those that start without weights of the model they come from
        self.adapter: PeftModel | None = None
        self.learned_temperature: LearnedTemperature | None = None
        self.temperature: torch.Tensor | None = None
        _compute_head_in_float32(model)

    @property
    def config(self):
        return self.model.config

    @property
    def pad_id(self) -> int:
        """The id that fills rows up; masked everywhere, so any valid id will do where the tokenizer has none."""
        pad_id = self.tokenizer.pad_token_id
        return pad_id if pad_id is not None else (self.tokenizer.eos_token_id or 0)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        prefix_spans: tuple[Spans, ...] | None = None,
        read_at: torch.Tensor | None = None,
        per_head: bool = False,
    ) -> torch.Tensor:
        """Score conversations as ``layout`` puts them: one a row, or packed into one row.

        One a row: input_ids and attention_mask [rows, length], padded on either side -> float32 [rows]. Packed:
        input_ids and position_ids [1, length], with the spans and the indices to read at -> float32 [conversations].
        ``per_head`` gives the scores of each head, [rows or conversations, heads], in place of the combined ones.
        """
        if self.learned_temperature is not None:
            # Here and not where the loss is, because ZeRO-3 has a parameter at hand only in its module's forward.
            self.temperature = self.learned_temperature()
        scores = self._head_scores(input_ids, attention_mask, position_ids, prefix_spans, read_at)
        return scores if per_head else self.heads.combined(scores)

    def _head_scores(self, input_ids, attention_mask, position_ids, prefix_spans, read_at) -> torch.Tensor:
        """float32 [conversations, heads]."""
        if prefix_spans is not None:
            hidden = self._packed_states(input_ids, position_ids, prefix_spans)
            if self.pooling == "last":
                hidden = hidden[0, read_at]
            else:
                hidden = pool_packed(hidden, position_ids, prefix_spans, self.pooling)
            return self.model.score(hidden)
        if not self.reads_last_token:
            input_ids, attention_mask = padded_on_the_right(input_ids, attention_mask)
            return self.model(input_ids=input_ids, attention_mask=attention_mask).logits.float()
        body = self.model.base_model
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
        if "position_ids" in inspect.signature(body.forward).parameters:
            inputs["position_ids"] = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        # A model that is spread over devices ends on another one than it begins on.
        hidden = body(**inputs).last_hidden_state.to(input_ids.device)
        if self.pooling == "last":
            rows = torch.arange(len(hidden), device=hidden.device)
            hidden = hidden[rows, last_attended(attention_mask)]
        else:
            hidden = pool(hidden, attention_mask, self.pooling)
        return self.model.score(hidden)

    def _packed_states(self, input_ids, position_ids, prefix_spans) -> torch.Tensor:
        """The hidden states of one packed row: [1, length, hidden size]."""
        return self.model.base_model(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=packed_mask(input_ids.device),
            prefix_spans=prefix_spans,
            use_cache=False,
        ).last_hidden_state.to(input_ids.device)

    def share_prefixes(self, mode: str, kernel: str = "spans") -> None:
        """Choose the layout: ``off`` one conversation a row, ``on`` packed groups, ``auto`` where it saves enough.

        ``kernel``: ``spans``, or ``flex`` for FlexAttention (CUDA); where that fails spans take its place, and where
        the model cannot share prefixes it stays with one conversation a row. Either is said, with the reason.
        """
        if mode == "off":
            return
        obstacle = self._sharing_obstacle()
        if obstacle is None and kernel == "flex":
            problem = self._try_kernel(FLEX_ATTENTION)
            if problem is not None:
                logger.warning("FlexAttention is not used in %s: %s", type(self.model).__name__, problem)
        if obstacle is None and self.model.config._attn_implementation != FLEX_ATTENTION:
            obstacle = self._try_kernel(SPAN_ATTENTION)
        if obstacle is not None:
            logger.warning("prefixes are not shared in %s: %s", type(self.model).__name__, obstacle)
            return
        self.layout = BatchLayout(self.pad_id, least_saving=1 if mode == "on" else LEAST_SAVING)

    def _try_kernel(self, kernel: str) -> str | None:
        """Take the attention function of this name, or keep the stock one and tell what is wrong with it."""
        self.model.set_attn_implementation(kernel)
        try:
            error = self._sharing_error(kernel)
        except Exception as failure:  # a compiler may end in anything
            if kernel != FLEX_ATTENTION:
                raise
            problem = f"it fails here: {first_line(failure)}"
        else:
            if error <= SHARING_TOLERANCE[self.model.dtype]:
                return None
            problem = f"its packed scores differ by {error:.1e} from those alone"  # NaN is a problem, too
        self.model.set_attn_implementation(self.attention_implementation)
        return problem

    def _sharing_obstacle(self) -> str | None:
        if not self.reads_last_token:
            return "it is no decoder read at its last token"
        if not getattr(self.model, "_supports_attention_backend", False):
            return "it does not use transformers' attention interface"
        return sharing_obstacle(self.config)

    @torch.no_grad()
    def _sharing_error(self, kernel: str) -> float:
        """The largest difference, relative to the largest hidden state, between a small group packed and alone.

        Configurations cannot tell everything that a model may do, so it is tried. Under ZeRO-3 the weights are not
        here yet; then the configuration alone has to do.
        """
        if is_deepspeed_zero3_enabled():
            return 0.0
        was_training = self.model.training
        self.model.eval()
        vocabulary = self.config.get_text_config().vocab_size
        tokens = torch.randint(vocabulary, (3, 12), generator=torch.Generator().manual_seed(0)).tolist()
        group = [tokens[0] + tokens[1], tokens[0] + tokens[2][:5]]
        device = self.model.device
        packed = BatchLayout(self.pad_id, least_saving=1)([group])
        read_at = packed.pop("read_at")
        states = self._packed_states(
            **{name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in packed.items()}
        )[0, read_at]
        self.model.set_attn_implementation(self.attention_implementation)
        alone = [torch.tensor([conversation], device=device) for conversation in group]
        expected = torch.cat([self.model.base_model(ids, use_cache=False).last_hidden_state[:, -1] for ids in alone])
        expected = expected.to(device)
        self.model.set_attn_implementation(kernel)
        self.model.train(was_training)
        return ((states - expected).abs().max() / expected.abs().max()).item()

    @classmethod
    def from_pretrained(
        cls,
        model_path: str,
        *,
        dtype: torch.dtype = torch.float32,
        new_head: bool = False,
        heads: RewardHeads | None = None,
        pooling: str | None = None,
        chat_template: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        **model_options,
    ) -> "RewardModel":
        """Load a reward model, or with ``new_head`` also a causal or masked language model, which gets a fresh head.

        A folder with a LoRA adapter is its base model with the adapter merged in. ``heads`` and ``pooling`` None keep
        the model's own. Raises InputError for whatever cannot be loaded as a reward model, see ``classifier_loading``;
        RunFailed where the Hub cannot be reached.
        """
        source = {"revision": revision, "trust_remote_code": trust_remote_code}
        tokenizer = load_tokenizer(model_path, chat_template=chat_template, **source)
        adapter = adapter_config(model_path, revision)
        wanted = {"dtype": dtype, "heads": heads, "pooling": pooling, **source, **model_options}
        if adapter is None:
            loaded = load_classifier(model_path, new_head=new_head, **wanted)
        else:
            loaded = load_merged(model_path, adapter, vocabulary=len(tokenizer), **wanted)
        model = cls(loaded.model, tokenizer, loaded.pooling)
        model.fresh_layers = loaded.fresh_layers
        if model.fresh_layers:
            logger.info("%s: is a language model, and gets a new reward head", model_path)
        return model

    def disable_dropout(self) -> None:
        """Switch the model's own dropout off; the saved configuration keeps its rates."""
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            for name, value in list(vars(module).items()):  # what a layer hands to a function itself
                if "dropout" in name and isinstance(value, float):
                    setattr(module, name, 0.0)

    def add_adapter(self, settings: LoraSettings, *, base: str, revision: str | None = None) -> None:
        """Train a LoRA adapter, the head and what else starts fresh, in place of all weights.

        ``base`` and ``revision`` are where the weights come from, for who loads the adapter.
        """
        adapter = add_adapter(self.model, settings, base=base, revision=revision, fresh=self.fresh_layers)
        # Not as a module: its parameters are those of the model, which it wraps.
        object.__setattr__(self, "adapter", adapter)

    def load_state_dict(self, state_dict: dict[str, torch.Tensor], strict: bool = True, **options):
        """As a module's; while an adapter is trained the frozen weights may be absent, and stay as they are."""
        if self.adapter is not None:
            frozen = {name: weight.data for name, weight in self.named_parameters() if not weight.requires_grad}
            state_dict = frozen | dict(state_dict)
        return super().load_state_dict(state_dict, strict=strict, **options)

    def load_adapter(self, folder: str | os.PathLike) -> None:
        """Take the adapter's weights from a folder that this model saved."""
        load_adapter_weights(self.adapter, Path(folder) / ADAPTER_WEIGHTS)

    def learn_temperature(self, initial: float) -> None:
        """Train the temperature of the objective, too: each forward leaves it as ``temperature``, a scalar tensor that
        carries gradients. It is not part of what is saved as the model.
        """
        self.learned_temperature = LearnedTemperature(initial).to(self.model.dtype)  # as ZeRO-3 needs

    def ensure_own_pad_token(self) -> None:
        """Give tokenizer and model a pad token of their own where there is none or it is the eos or the unknown one.

        Stock classes find the last token by the pad id, so a saved folder must have one that no text contains.
        """
        tokenizer = self.tokenizer
        if tokenizer.pad_token_id in (None, tokenizer.eos_token_id, tokenizer.unk_token_id):
            tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
            fit_embeddings(self.model, len(tokenizer))
        self.config.pad_token_id = tokenizer.pad_token_id
        self.config.get_text_config().pad_token_id = tokenizer.pad_token_id
        self.layout = replace(self.layout, pad_id=self.pad_id)

    def merge_heads(self) -> None:
        """Put one head in the place of several whose scores are added up; the score stays the same, up to rounding.

        Raises InputError where they are combined in another way.
        """
        weights = self.heads.sum_weights()
        [head] = [layer for layer in self.model.modules() if isinstance(layer, Float32Linear)]
        for name, parameter in list(head.named_parameters()):
            merged = torch.tensordot(weights, parameter.data.float(), dims=1).unsqueeze(0).to(parameter.dtype)
            setattr(head, name, nn.Parameter(merged))
        head.out_features = self.model.num_labels = 1
        self.heads = ONE_HEAD
        self.heads.describe_in(self.config)

    def save_pretrained(self, folder: str | os.PathLike, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Save a stock folder: weights, config, tokenizer and the chat template that carries the special tokens.

        While a LoRA adapter is trained it is a folder with the adapter and the head; with a pooling that stock classes
        do not know it is one that they refuse, see ``pooling``.

        ``state_dict``: this module's, as a distributed trainer gathers it; taken from the model itself otherwise.
        """
        if state_dict is not None:
            own = ((name, tensor) for name, tensor in state_dict.items() if name.startswith("model."))
            state_dict = {name.removeprefix("model."): tensor for name, tensor in own}
        if self.adapter is not None:
            save_adapter(self.adapter, Path(folder), state_dict)
            self.heads.save_beside_adapter(Path(folder))
        else:
            self.model.save_pretrained(folder, state_dict=state_dict)
        if self.pooling != "last":
            self.config.save_pretrained(folder)
            mark_as_pooled(folder, self.pooling)
        # Stock classes number the positions from the left, padding included.
        self.tokenizer.padding_side = "right"
        self.tokenizer.save_pretrained(folder)

    # Trainer calls the first or the second name, by its version. Reentrant checkpointing is wrong under ZeRO where the
    # body runs twice, so it is off unless asked for.

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None, **options) -> None:
        self.model.gradient_checkpointing_enable(
            {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}, **options
        )

    def activation_checkpointing_enable(self, activation_checkpointing_kwargs: dict | None = None, **options) -> None:
        self.model.activation_checkpointing_enable(
            {"use_reentrant": False, **(activation_checkpointing_kwargs or {})}, **options
        )

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def facts(self) -> dict:
        """What of the model a reader of its scores must know."""
        tokenizer = self.tokenizer
        return {
            "architecture": type(self.model).__name__,
            "attention_implementation": self.attention_implementation,
            "pooling": self.pooling,
            "prefix_sharing": self.layout.least_saving is not None,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "pad_token_is_eos": tokenizer.pad_token_id is not None and tokenizer.pad_token_id == tokenizer.eos_token_id,
            "revision": getattr(self.config, "_commit_hash", None),
            **({} if self.heads.are_plain else {"heads": self.heads.as_facts()}),
        }


class LearnedTemperature(nn.Module):
    """A temperature above 0 as the exponential of its parameter, which has one dimension: DeepSpeed broadcasts no
    scalars.
    """

    def __init__(self, initial: float):
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor([float(initial)]).log())

    def forward(self) -> torch.Tensor:
        return self.log_temperature.float().exp().squeeze(0)


class Float32Linear(nn.Linear):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return nn.functional.linear(hidden.float(), self.weight.float(), bias)


def _compute_head_in_float32(model: PreTrainedModel) -> None:
    # The last linear layer with an output a head holds them all. Only its arithmetic changes: the weights keep their
    # names, so the saved folder stays stock, and it is still called as a module, as ZeRO-3's gathering hooks need.
    heads = model.config.num_labels
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear and layer.out_features == heads]
    if layers:
        layers[-1].__class__ = Float32Linear


def last_attended(attention_mask: torch.Tensor) -> torch.Tensor:
    """Index of the last attended token of each row: [rows, length] -> int64 [rows], on either padding side."""
    positions = torch.arange(attention_mask.shape[-1], device=attention_mask.device)
    return (positions * attention_mask.bool()).argmax(-1)


def padded_on_the_right(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same rows with their attended tokens first, in order; both [rows, length]."""
    order = attention_mask.argsort(dim=-1, descending=True, stable=True)
    return input_ids.gather(-1, order), attention_mask.gather(-1, order)
