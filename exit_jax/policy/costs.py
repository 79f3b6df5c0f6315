"""What a decoder computes, counted from its shape: XLA counts the body of a scan or a loop once, whatever it repeats.

Model FLOPs: two for each multiply-add of a matrix product, attention over the pairs that the causal mask keeps, at full widths
(prompts of P tokens, responses of T), in layers with a window, too. Norms, rotations, softmax and sampling are left out:
together a few per cent of a small model, less of a large one (tests/test_compile.py has the figure).
"""

from exit_jax.policy.shape import DecoderConfig


def projection_sizes(config: DecoderConfig) -> dict[str, tuple[int, int]]:
    """Return (inputs, outputs) of each projection of one layer; of experts, those of a token taken together."""
    c = config
    mlp = c.mlp_dim * (c.experts_per_token or 1)
    heads, kv_heads = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    return {
        "query": (c.embed_dim, heads),
        "key": (c.embed_dim, kv_heads),
        "value": (c.embed_dim, kv_heads),
        "out": (heads, c.embed_dim),
        "gate": (c.embed_dim, mlp),
        "up": (c.embed_dim, mlp),
        "down": (mlp, c.embed_dim),
    } | ({"router": (c.embed_dim, c.num_experts)} if c.num_experts else {})


def layers_flops(config: DecoderConfig) -> int:
    """Return FLOPs of all layers' kernels for one token."""
    return 2 * config.num_layers * sum(n * m for n, m in projection_sizes(config).values())


def adapters_flops(config: DecoderConfig) -> int:
    """Return FLOPs of all adapters for one token; 0 without LoRA."""
    sizes, lora = projection_sizes(config), config.lora
    return 2 * config.num_layers * lora.rank * sum(sum(sizes[name]) for name in lora.targets)


def token_flops(config: DecoderConfig) -> int:
    """Return FLOPs of all layers' kernels and adapters for one token."""
    return layers_flops(config) + adapters_flops(config)


def head_flops(config: DecoderConfig) -> int:
    """Return FLOPs of one token's logits."""
    return 2 * config.embed_dim * config.vocab_size


def attention_flops(config: DecoderConfig, pairs: int) -> int:
    """Return FLOPs of scores and mixtures over pairs of a query and a key that it sees, in all layers and heads."""
    return 4 * config.num_layers * config.num_heads * config.head_dim * pairs


def prompt_pairs(prompts: int, width: int) -> int:
    """Return the causal pairs within prompts; 2 prompts of 3 tokens have 2 (1 + 2 + 3) = 12."""
    return prompts * width * (width + 1) // 2


def response_pairs(rows: int, prompt_width: int, width: int) -> int:
    """Return the pairs of each row's first ``width`` own tokens with its prompt and with each other."""
    return rows * width * prompt_width + prompt_pairs(rows, width)


def unasked_flops(config: DecoderConfig, prompts: int, prompt_width: int) -> tuple[int, int]:
    """Return FLOPs that prompts save in the last layer, where all tokens but the last make keys and values alone.

    Those of its kernels, and those of its adapters and attention.
    """
    sizes = {name: size for name, size in projection_sizes(config).items() if name not in ("key", "value")}
    tokens = prompts * (prompt_width - 1)
    adapters = 2 * config.lora.rank * sum(sum(size) for name, size in sizes.items() if name in config.lora.targets)
    pairs = prompt_pairs(prompts, prompt_width) - prompts * prompt_width
    attention = attention_flops(config, pairs) // config.num_layers
    return tokens * 2 * sum(n * m for n, m in sizes.values()), tokens * adapters + attention


def prefill_flops(config: DecoderConfig, prompts: int, prompt_width: int) -> int:
    """Return FLOPs of reading prompts once a group; the first token's logits count as decoding."""
    whole = prompts * prompt_width * token_flops(config) + attention_flops(config, prompt_pairs(prompts, prompt_width))
    return whole - sum(unasked_flops(config, prompts, prompt_width))


def decode_flops(config: DecoderConfig, rows: int, prompt_width: int, max_tokens: int) -> int:
    """Return FLOPs of sampling ``max_tokens`` tokens a row; the last one is not read."""
    read = max_tokens - 1
    return (
        rows * read * token_flops(config)
        + rows * max_tokens * head_flops(config)
        + attention_flops(config, response_pairs(rows, prompt_width, read))
    )


def forward_flops(config: DecoderConfig, prompts: int, group_size: int, prompt_width: int, max_tokens: int) -> int:
    """Return FLOPs of the log-probs of all responses, as the learner and the reference take them: prompts once a group.

    The last token is counted, though the learner reads it only where that keeps the width in whole tiles (sampler.logprobs).
    Layers that are scanned are all alike, so that the last one saves nothing.
    """
    rows = prompts * group_size
    responses = rows * max_tokens * (token_flops(config) + head_flops(config))
    pairs = response_pairs(rows, prompt_width, max_tokens)
    scanned = 0 if config.unroll_layers else sum(unasked_flops(config, prompts, prompt_width))
    return prefill_flops(config, prompts, prompt_width) + scanned + responses + attention_flops(config, pairs)


def backward_flops(config: DecoderConfig, prompts: int, group_size: int, prompt_width: int, max_tokens: int) -> int:
    """Return FLOPs of the gradient: two products for each one of the forward pass, but one for a kernel that is frozen."""
    tokens = prompts * (prompt_width + group_size * max_tokens)
    whole = 2 * forward_flops(config, prompts, group_size, prompt_width, max_tokens)
    if not config.lora.rank:
        return whole
    frozen = tokens * layers_flops(config) + prompts * group_size * max_tokens * head_flops(config)
    saved = unasked_flops(config, prompts, prompt_width)[0] if config.unroll_layers else 0
    return whole - (frozen - saved)


def recomputed_flops(
    config: DecoderConfig, token_chunk: int, prompts: int, group_size: int, prompt_width: int, max_tokens: int
) -> int:
    """Return FLOPs that the backward pass repeats to save memory; no model FLOPs, but time all the same."""
    rows = prompts * group_size
    head = rows * max_tokens * head_flops(config)
    chunked = head if 0 < token_chunk < max_tokens else 0
    if config.remat == "none":
        return chunked
    if config.remat == "dots":
        pairs = prompt_pairs(prompts, prompt_width) + response_pairs(rows, prompt_width, max_tokens)
        return chunked + attention_flops(config, pairs)
    return chunked + forward_flops(config, prompts, group_size, prompt_width, max_tokens) - head
