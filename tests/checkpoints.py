"""Folders in the form of each family's checkpoints, with small tokenizers that hold the real control tokens, for tests."""

import dataclasses
import functools
import json
import pathlib
from typing import Any

# the pre-tokenizer of Llama 3; Qwen's has single digits
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
DIGIT_SPLIT = SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
SENTENCES = [
    "Improve the response.\n\n# Request\n\nWhat is 1 + 2? It is 3, not 345.\n\n",
    "You are a helpful assistant.\nuser",
] * 3


@dataclasses.dataclass(frozen=True)
class Family:
    """A family's control tokens, and what its files say of them."""

    model_type: str
    tokenizer_class: str
    bos: str | None
    eos: str
    special: tuple[str, ...]
    added: tuple[str, ...] = ()  # not marked as special in the family's tokenizer.json either
    inputs: dict = dataclasses.field(default_factory=dict)
    turn: str = "<|im_start|>{role}\n{content}<|im_end|>\n"  # a chat template's turn, in short
    lead: str = "<|im_start|>assistant\n"
    split: str = SPLIT
    nfc: bool = False


def llama(**inputs):
    special = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    turn = "<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>"
    lead = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    named = "<|begin_of_text|>", "<|eot_id|>"
    return Family("llama", "PreTrainedTokenizerFast", *named, special, inputs=inputs, turn=turn, lead=lead)


def qwen(model_type, *added):
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    return Family(model_type, "Qwen2Tokenizer", None, "<|im_end|>", special, added, split=DIGIT_SPLIT, nfc=True)


def r1(model_type, split):
    bos, eos = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
    added = ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>")
    turn, lead = "<｜{role}｜>{content}<｜end▁of▁sentence｜>", "<｜Assistant｜><think>\n"
    return Family(model_type, "LlamaTokenizerFast", bos, eos, (bos, eos), added, turn=turn, lead=lead, split=split)


def mistral():
    turn = "{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]{% else %} {{ m.content }}</s>{% endif %}"
    special = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]")
    return Family("mistral", "LlamaTokenizerFast", "<s>", "</s>", special, turn=turn, lead="")


def gemma():
    """Return Gemma 3, whose template calls an assistant a model, and strips what is said."""
    named = "{{ 'model' if m.role == 'assistant' else m.role }}"
    turn = f"<start_of_turn>{named}\n{{{{ m.content }}}}<end_of_turn>\n"
    special = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")
    turn = "{% if true %}" + turn + "{% endif %}"
    return Family(
        "gemma3_text", "GemmaTokenizerFast", "<bos>", "<end_of_turn>", special, turn=turn, lead="<start_of_turn>model\n"
    )


FAMILIES = {
    "llama3": llama(),
    "llama3_1": llama(date_string="26 Jul 2024"),
    "llama3_2": llama(date_string="26 Jul 2024"),
    "qwen2_5": qwen("qwen2", "<tool_call>", "</tool_call>"),
    "qwen3": qwen("qwen3", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"),
    "qwen3_instruct_2507": qwen("qwen3", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
    "deepseek_r1_distill": r1("qwen2", DIGIT_SPLIT),
    "deepseek_r1_distill_llama": r1("llama", SPLIT),
    "mistral": mistral(),
    "gemma3": gemma(),
}
SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "vocab_size": 512,  # padded, as real ones are
}


@functools.cache
def trained(split: str, nfc: bool) -> str:
    """Return a byte-level BPE of SENTENCES, as JSON."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    if nfc:
        bpe.normalizer = normalizers.NFC()
    parts = [pre_tokenizers.Split(Regex(split), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.Sequence(parts), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=380, initial_alphabet=alphabet, show_progress=False)
    )
    return bpe.to_str()


def backend(family: Family) -> Any:
    """Return a ``tokenizers.Tokenizer`` with the control tokens of a family."""
    from tokenizers import AddedToken, Tokenizer, processors

    bpe = Tokenizer.from_str(trained(family.split, family.nfc))
    bpe.add_special_tokens(list(family.special))
    bpe.add_tokens([AddedToken(text, special=False, normalized=False) for text in family.added])
    if family.bos:  # their tokenizers add a BOS to what they encode, beside that of the template
        bos = (family.bos, bpe.token_to_id(family.bos))
        bpe.post_processor = processors.TemplateProcessing(single=f"{family.bos} $A", special_tokens=[bos])
    return bpe


def short_template(family: Family) -> str:
    """Return a chat template with the family's turns and nothing else, where the family's own is not at hand."""
    turn = family.turn
    if "{%" not in turn:
        role = "{{ m.role | capitalize }}" if "｜" in turn else "{{ m.role }}"
        turn = turn.replace("{role}", role).replace("{content}", "{{ m.content }}")
    bos = "{{- bos_token }}" if family.bos else ""
    every = f"{{%- for m in messages -%}}{turn}{{%- endfor -%}}"
    return f"{bos}{every}{{%- if add_generation_prompt -%}}{family.lead}{{%- endif -%}}"


def real_template(name: str) -> str | None:
    """Return the family's chat template as TRL ships it; None for those that it does not, or without TRL."""
    import importlib.util

    found = importlib.util.find_spec("trl")
    if not found or not found.origin:
        return None
    file = pathlib.Path(found.origin).parent / "chat_templates" / f"{name.removesuffix('_llama')}.jinja"
    return file.read_text(encoding="utf-8") if file.exists() else None


def write(
    folder: pathlib.Path, family: Family, template: str, config: dict | None = None, **tokenizer_config
) -> pathlib.Path:
    """Write all files of a checkpoint but its weights; ``config`` and ``tokenizer_config`` change theirs."""
    folder.mkdir(parents=True, exist_ok=True)
    bpe = backend(family)
    bpe.save(str(folder / "tokenizer.json"))
    fields = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    added = {str(i): {f: getattr(token, f) for f in fields} for i, token in bpe.get_added_tokens_decoder().items()}
    named = {"bos_token": family.bos, "eos_token": family.eos, "pad_token": family.eos, "unk_token": None}
    named |= {"add_bos_token": bool(family.bos), "tokenizer_class": family.tokenizer_class, "model_max_length": 4096}
    named |= {"added_tokens_decoder": added, "clean_up_tokenization_spaces": False, "chat_template": template}
    _dump(folder / "tokenizer_config.json", named | tokenizer_config)
    architectures = {
        "llama": "Llama",
        "mistral": "Mistral",
        "qwen2": "Qwen2",
        "qwen3": "Qwen3",
        "gemma3_text": "Gemma3",
    }
    architecture = architectures[family.model_type]
    eos = bpe.token_to_id(family.eos)
    own = {"hidden_act": "gelu_pytorch_tanh"} if architecture == "Gemma3" else {}
    whole = (
        SHAPE
        | own
        | {
            "architectures": [f"{architecture}ForCausalLM"],
            "model_type": family.model_type,
            "eos_token_id": eos,
        }
    )
    _dump(
        folder / "config.json", whole | ({"sliding_window": None} if architecture == "Mistral" else {}) | (config or {})
    )
    _dump(folder / "generation_config.json", {"eos_token_id": [eos], "temperature": 0.6, "do_sample": True})
    return folder


def make(folder: pathlib.Path, name: str, **tokenizer_config) -> pathlib.Path:
    """Write a family's checkpoint without weights, with its real chat template where that is at hand."""
    family = FAMILIES[name]
    return write(folder, family, real_template(name) or short_template(family), **tokenizer_config)


def random_qwen2(folder: pathlib.Path) -> pathlib.Path:
    """Write a checkpoint with random weights in the shape of Qwen2, and Qwen2.5's control tokens and chat template."""
    from small import LLAMA, random_params

    from exit_jax.policy.hf.export import export

    tokens = make(folder.with_name(f"{folder.name}-tokens"), "qwen2_5")
    shape = dataclasses.replace(LLAMA, vocab_size=SHAPE["vocab_size"], qkv_bias=True)
    export(random_params(shape), shape, folder, None, "float32")
    assert json.loads((folder / "config.json").read_text())["model_type"] == "qwen2"
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (tokens / name).rename(folder / name)
    return folder


def _dump(path: pathlib.Path, content: dict) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
