"""The architecture of DCLM-7B (open_lm) as a model of transformers.

A decoder with pre-norm blocks, x + attention(norm(x)) and then x + ffn(norm(x)). LayerNorm, in DCLM-7B without bias;
queries and keys are normalized over all heads at once, before they are split into heads; rotary positions on the two
halves of a head; one matrix `in_proj` for q, k and v, one `w12` for gate and up. Modules have the names that published
checkpoints have, so these load as they are; the head lies in the body for that reason.

This file is saved beside every checkpoint of the architecture, for `trust_remote_code=True` where calibrune is not
installed: it imports torch and transformers only.
"""

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import can_return_tuple

ROTARY_BASE = 10_000.0

# what transformers calls the keys and values of earlier tokens, from 5.24 on and before
CACHE = "cache" if "cache" in signature(create_causal_mask).parameters else "past_key_values"

# by open_lm's name of a norm, whether it has a gain and a bias
NORMS = {
    "default_layer_norm": (True, True),
    "lp_layer_norm": (True, True),
    "gain_only_layer_norm": (True, False),
    "gain_only_lp_layer_norm": (True, False),
    "no_wb_layer_norm": (False, False),
}

# what a config may ask for; everything else is refused, never computed as something near to it
UNDERSTOOD = {
    "norm_type": tuple(NORMS),
    "ffn_type": ("swiglu", "swiglu_torch"),
    "positional_embedding_type": ("rotary",),
    "attn_name": (None, "auto", "torch_attn", "xformers_attn", "xformers_attn_variable_length"),
    "moe_freq": (None, 0),
}

# open_lm's own defaults, for what a config leaves out; dimensions have none
DEFAULTS: dict[str, Any] = {
    "dim": 512,
    "n_layers": 8,
    "n_heads": 8,
    "vocab_size": 50_432,
    "seq_len": 2048,
    "norm_type": "default_layer_norm",
    "norm_eps": 1e-5,
    "apply_qk_norm": False,
    "post_embed_norm": False,
    "weight_tying": False,
    "ffn_type": "swiglu",
    "positional_embedding_type": "rotary",
    "attn_name": "auto",
    "moe_freq": 0,
}

# the other names that open_lm has for the same things, in model files and on its command line
SYNONYMS = {"hidden_dim": "dim", "model_norm": "norm_type", "qk_norm": "apply_qk_norm"}


class OpenLMConfig(PretrainedConfig):  # type: ignore[misc]
    """The shape of an open_lm model, under open_lm's names.

    Reads the published layouts of config.json: the values at the top, or nested under `params` or `params_args_dict`.
    What is left out has open_lm's default (a LayerNorm with bias, no qk-norm); DCLM-7B says otherwise in its config.

    Raises:
        ValueError: the config asks for a part of open_lm that is not understood here (experts, another norm, ...), or
            has nested values without the dimensions.
    """

    model_type = "openlm"
    keys_to_ignore_at_inference = [CACHE]  # noqa: RUF012  (as transformers declares it)
    attribute_map = {  # noqa: RUF012
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "max_position_embeddings": "seq_len",
        "tie_word_embeddings": "weight_tying",
    }

    def __init__(self, **kwargs: Any) -> None:
        nested: dict[str, Any] = {}
        for place in ("params_args_dict", "params"):
            nested |= kwargs.pop(place, None) or {}
        given = {name: nested[name] for name in (*SYNONYMS, *DEFAULTS) if nested.get(name) is not None}
        given |= {self.attribute_map.get(name, name): value for name, value in kwargs.items() if value is not None}
        given = {SYNONYMS[name]: value for name, value in given.items() if name in SYNONYMS} | given
        if nested and (missing := [name for name in ("dim", "n_layers", "n_heads") if name not in given]):
            raise ValueError(
                f"the nested parameters of this openlm config lack {', '.join(missing)}; "
                f"copy them from the open_lm model file {nested.get('model')!r} into config.json"
            )
        for name, default in DEFAULTS.items():
            setattr(self, name, given.get(name, default))
        self.use_cache = kwargs.pop("use_cache", True)
        for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(self, token, kwargs.pop(token, None))
        handled = {*DEFAULTS, *SYNONYMS, *self.attribute_map}
        super().__init__(**{name: value for name, value in kwargs.items() if name not in handled})
        self._check()

    @property
    def intermediate_size(self) -> int:
        """Width of the feed-forward layer: 8/3 of the model's, rounded up to a multiple of 256."""
        width = 8 * int(self.dim) // 3
        return -(-width // 256) * 256

    def _check(self) -> None:
        for name, understood in UNDERSTOOD.items():
            if getattr(self, name) not in understood:
                choices = ", ".join(map(str, understood))
                raise ValueError(
                    f"{name}={getattr(self, name)!r} of open_lm is not supported; supported are: {choices}"
                )
        if self.dim % (2 * self.n_heads):
            raise ValueError(f"dim={self.dim} does not split into {self.n_heads} heads of an even size")


def rotary_tables(positions: Tensor, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine of position · base^(-2j/d), for j of the first half of a head and again for the second.

    As published: the frequencies are rounded to `dtype` before they meet the position. The published
    configurations of DCLM's 7B runs train in bfloat16; in float32 the frequencies are exact.

    Args:
        positions: [batch, seq]
    """
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    frequencies = (1.0 / ROTARY_BASE**exponents).to(dtype).float()
    angles = positions[..., None].float() * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Every pair (x_j, x_{j+d/2}) of a head turned by its angle; x is [batch, heads, seq, head_dim]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]


def _plain_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor]:
    """softmax(q·k / sqrt(d) + mask) · v, for `attn_implementation="eager"`."""
    scores = query @ key.transpose(-1, -2) * options["scaling"]
    if attention_mask is not None:
        scores = scores + attention_mask
    shares = scores.float().softmax(dim=-1).to(query.dtype)
    return (shares @ value).transpose(1, 2).contiguous(), shares


def _norm(config: OpenLMConfig, size: int) -> nn.LayerNorm:
    has_gain, has_bias = NORMS[config.norm_type]
    return nn.LayerNorm(size, eps=config.norm_eps, elementwise_affine=has_gain, bias=has_bias)


class OpenLMAttention(nn.Module):
    """Causal self-attention with one matrix for queries, keys and values."""

    def __init__(self, config: OpenLMConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx, self.is_causal = config, layer_idx, True
        self.head_dim = config.dim // config.n_heads
        self.in_proj = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.out_proj = nn.Linear(config.dim, config.dim, bias=False)
        self.q_norm = _norm(config, config.dim) if config.apply_qk_norm else nn.Identity()
        self.k_norm = _norm(config, config.dim) if config.apply_qk_norm else nn.Identity()

    def forward(
        self,
        x: Tensor,
        *,
        rotary: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        cache: Cache | None,
        **options: Any,
    ) -> Tensor:
        queries, keys, values = self.in_proj(x).chunk(3, dim=-1)
        query, key, value = (
            states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for states in (self.q_norm(queries), self.k_norm(keys), values)
        )
        query, key = rotated(query, *rotary), rotated(key, *rotary)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        attend: Callable[..., tuple[Tensor, Any]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, _plain_attention
        )
        mixed, _ = attend(self, query, key, value, attention_mask, scaling=self.head_dim**-0.5, **options)
        projected: Tensor = self.out_proj(mixed.reshape(x.shape))
        return projected


class OpenLMFeedForward(nn.Module):
    """w3(silu(gate) · up), gate and up from one matrix `w12`."""

    def __init__(self, config: OpenLMConfig) -> None:
        super().__init__()
        self.w12 = nn.Linear(config.dim, 2 * config.intermediate_size, bias=False)
        self.w3 = nn.Linear(config.intermediate_size, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.w12(x).chunk(2, dim=-1)
        result: Tensor = self.w3(nn.functional.silu(gate) * up)
        return result


class OpenLMBlock(nn.Module):
    """One decoder block: attention, then feed-forward, each on the normalized stream and added to it."""

    def __init__(self, config: OpenLMConfig, layer_idx: int) -> None:
        super().__init__()
        self.attention = OpenLMAttention(config, layer_idx)
        self.feed_forward = OpenLMFeedForward(config)
        self.attention_norm = _norm(config, config.dim)
        self.ffn_norm = _norm(config, config.dim)

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        x = x + self.attention(self.attention_norm(x), **options)
        result: Tensor = x + self.feed_forward(self.ffn_norm(x))
        return result


class OpenLMPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """What transformers wants to know of the architecture."""

    config_class = OpenLMConfig
    base_model_prefix = "model"
    _no_split_modules = ("OpenLMBlock",)
    _supports_sdpa = True
    _supports_attention_backend = True
    # the frequencies of the rotary positions, a buffer of every layer in published checkpoints; computed here
    _keys_to_ignore_on_load_unexpected = (r"attention\.pos_embed\.inv_freq$",)


class OpenLMModel(OpenLMPreTrainedModel):
    """Embedding, blocks and last norm; the head is in it, as in published checkpoints, but not called."""

    def __init__(self, config: OpenLMConfig) -> None:
        super().__init__(config)
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.post_embed_norm = _norm(config, config.dim) if config.post_embed_norm else nn.Identity()
        self.layers = nn.ModuleList(OpenLMBlock(config, index) for index in range(config.n_layers))
        self.norm = _norm(config, config.dim)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.tok_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.tok_embeddings = value

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **options: Any,
    ) -> Any:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x = self.tok_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        x = self.post_embed_norm(x)
        if cache is None:
            cache = past_key_values
        if cache is None and (self.config.use_cache if use_cache is None else use_cache):
            cache = DynamicCache(config=self.config)
        if position_ids is None:
            seen = 0 if cache is None else cache.get_seq_length()
            position_ids = (torch.arange(x.shape[1], device=x.device) + seen)[None]
        # transformers 4 has another name for it, and wants the positions of the cache too
        new = "inputs_embeds" in signature(create_causal_mask).parameters
        mask = create_causal_mask(
            config=self.config,
            **({"inputs_embeds": x} if new else {"input_embeds": x, "cache_position": position_ids[0]}),
            attention_mask=attention_mask,
            position_ids=position_ids,
            **{CACHE: cache},
        )
        rotary = rotary_tables(position_ids, self.config.dim // self.config.n_heads, x.dtype)
        states = [x]
        for block in self.layers:
            x = block(x, rotary=rotary, attention_mask=mask, cache=cache, **options)
            if output_hidden_states:
                states.append(x)
        x = self.norm(x)
        # as in other models of transformers, the last of the hidden states is the normalized one
        hidden_states = (*states[:-1], x) if output_hidden_states else None
        return BaseModelOutputWithPast(last_hidden_state=x, hidden_states=hidden_states, **{CACHE: cache})


class OpenLMForCausalLM(OpenLMPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """An open_lm model that predicts the next token."""

    _tied_weights_keys = {"model.output.weight": "model.tok_embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: OpenLMConfig) -> None:
        super().__init__(config)
        self.model = OpenLMModel(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.tok_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.model.tok_embeddings = value

    def get_output_embeddings(self) -> nn.Module:
        return self.model.output

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.model.output = value

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **options: Any,
    ) -> Any:
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=past_key_values if cache is None else cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **options,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.model.output(outputs.last_hidden_state[:, kept])
        loss = None if labels is None else self.loss_function(logits, labels, vocab_size=self.config.vocab_size)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            **{CACHE: getattr(outputs, CACHE)},
        )


def register() -> None:
    """Make transformers' Auto classes know the architecture, and let checkpoints carry this file."""
    AutoConfig.register(OpenLMConfig.model_type, OpenLMConfig, exist_ok=True)
    AutoModel.register(OpenLMConfig, OpenLMModel, exist_ok=True)
    AutoModelForCausalLM.register(OpenLMConfig, OpenLMForCausalLM, exist_ok=True)
    OpenLMConfig.register_for_auto_class()
    OpenLMForCausalLM.register_for_auto_class("AutoModelForCausalLM")
