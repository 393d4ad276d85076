"""Random models of a few thousand weights, one of each kind that the tests need; and a tokenizer for them."""

import copy
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    Glm4Config,
    GlmConfig,
    GPT2Config,
    GPTBigCodeConfig,
    GPTJConfig,
    GPTNeoXConfig,
    GPTNeoXJapaneseConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    MptConfig,
    Olmo2Config,
    OPTConfig,
    PersimmonConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    StableLmConfig,
)

from calibrune.lm.loading import LanguageModel
from calibrune.lm.openlm import OpenLMConfig

VOCAB = 96

CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    ),
    # blocks that take different masks and different rotary positions
    "gemma3": Gemma3TextConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"] * 2,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    ),
    # weights stored [in, out]
    "gpt2": GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=3, n_head=4, n_positions=128, bos_token_id=0, eos_token_id=1
    ),
    # a decoder inside the body, learned positions with an offset
    "opt": OPTConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        word_embed_proj_dim=32,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    ),
}

GATED: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
"""What the youngest architectures call these alike; two blocks."""

BIGCODE: dict[str, Any] = {
    "vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "bos_token_id": 0,
    "eos_token_id": 1,
}  # fmt: skip

WITH_EXPERTS: dict[str, PretrainedConfig] = {
    "mixtral": MixtralConfig(**GATED, num_local_experts=4, num_experts_per_tok=2),
    # a shared expert with a gate of its own beside the routed ones; a first block without experts
    "qwen2-moe": Qwen2MoeConfig(
        **GATED,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=24,
        mlp_only_layers=[0],
    ),
    "qwen3-moe": Qwen3MoeConfig(**GATED, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
}
"""Experts in 3-D tensors."""

DENSE: dict[str, PretrainedConfig] = CONFIGS | {
    "mistral": MistralConfig(**GATED, sliding_window=4),
    "qwen2": Qwen2Config(**GATED),
    "qwen3": Qwen3Config(**GATED, head_dim=8),
    "gemma2": Gemma2Config(**GATED, head_dim=8, sliding_window=4),
    # one matrix for q, k and v and one for gate and up
    "phi3": Phi3Config(**GATED),
    "olmo2": Olmo2Config(**GATED),
    # attention and feed-forward side by side
    "stablelm": StableLmConfig(**GATED, use_parallel_residual=True),
    # q, k and v in turn, head by head
    "gpt-neox": GPTNeoXConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
    ),
    "bloom": BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4),
    # one key and one value head for all (7B), one for each head (RW), one for each group (40B)
    "falcon": FalconConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128
    ),
    "falcon-rw": FalconConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        multi_query=False,
        alibi=True,
        parallel_attn=False,
    ),
    "falcon-new": FalconConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_kv_heads=2,
        max_position_embeddings=128,
        new_decoder_architecture=True,
    ),
    "gpt-neox-japanese": GPTNeoXJapaneseConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128
    ),
    "persimmon": PersimmonConfig(**(GATED | {"num_key_value_heads": 4})),
    # one key and value head for all (StarCoder), or q, k and v in turn
    "gpt-bigcode": GPTBigCodeConfig(**BIGCODE),
    "gpt-bigcode-heads": GPTBigCodeConfig(**BIGCODE, multi_query=False),
    "mpt": MptConfig(vocab_size=VOCAB, d_model=32, n_heads=4, n_layers=2, max_seq_len=128),
    "glm": GlmConfig(**GATED, head_dim=8),
    "glm4": Glm4Config(**GATED, head_dim=8),
    "gptj": GPTJConfig(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=128, rotary_dim=4, bos_token_id=0, eos_token_id=1
    ),
    # as DCLM-7B is made; the feed-forward is 256 wide, which is the least
    "openlm": OpenLMConfig(
        vocab_size=VOCAB,
        dim=32,
        n_layers=2,
        n_heads=4,
        seq_len=128,
        norm_type="gain_only_lp_layer_norm",
        apply_qk_norm=True,
        ffn_type="swiglu_torch",
    ),
}
"""Every supported architecture without experts."""

ARCHITECTURES: dict[str, PretrainedConfig] = DENSE | WITH_EXPERTS


def tiny_model(kind: str = "llama", seed: int = 0) -> PreTrainedModel:
    """A random model in float32, the same for the same seed; large enough weights to give inputs of unlike size."""
    return from_config(ARCHITECTURES[kind], seed)


def from_config(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    # a copy: what a test changes in its model's config is no business of the next
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config)).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.2)
    return model


def tiny_tokenizer(*, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    """One token a character of printable ASCII; 0 is BOS, 1 is EOS."""
    characters = {chr(code): code - 30 for code in range(32, 126)}
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, **characters}, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def tiny_lm(kind: str = "llama", *, adds_bos: bool = False) -> LanguageModel:
    return LanguageModel(
        tiny_model(kind), tiny_tokenizer(adds_bos=adds_bos), {"name": f"tiny-{kind}", "dtype": "float32"}
    )


def random_ids(n: int = 6, seq_len: int = 24, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, VOCAB, (n, seq_len), generator=torch.Generator().manual_seed(seed))
