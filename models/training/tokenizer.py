"""Trains the demo model's tokenizer: byte-level BPE, 4096 tokens, with Llama 3's split regex and special names.

    python tokenizer.py     # work/train.jsonl → ../demo/tokenizer.json, tokenizer_config.json, generation_config.json

The numbers up to 100 become single tokens, as in Llama 3, so that a sum has two tokens instead of four digits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from corpus import DEMO, WORK
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

N_VOCAB = 4096
N_TRAINING_DOCUMENTS = 40_000
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BOS, END, HEADER, HEADER_END, EOT, PAD = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|finetune_right_pad_id|>",
)
SPECIAL = [BOS, END, HEADER, HEADER_END, EOT, PAD, *(f"<|reserved_special_token_{i}|>" for i in range(10))]

CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{- message['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
    "{%- endif %}"
)


def split() -> pre_tokenizers.PreTokenizer:
    """Returns Llama 3's pre-tokenizer."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False),
        ]
    )


def texts() -> Iterator[str]:
    """Yields the numbers, often enough to be merged, and the first documents of the corpus without their markup."""
    yield from (f"{number}" for number in range(101) for _ in range(500))
    with (WORK / "train.jsonl").open(encoding="utf-8") as file:
        for _, line in zip(range(N_TRAINING_DOCUMENTS), file, strict=False):
            document = json.loads(line)
            if "text" in document:
                yield document["text"]
            else:
                yield from (part for role, text in document["turns"] for part in (f"{role}\n\n", text))


def train() -> Tokenizer:
    """Returns the tokenizer; special tokens have the last ids, as in Llama 3."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = split()
    trainer = trainers.BpeTrainer(
        vocab_size=N_VOCAB - len(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.add_special_tokens(SPECIAL)
    bos_id = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(add_prefix_space=True, trim_offsets=False, use_regex=True),
            processors.TemplateProcessing(
                single=f"{BOS}:0 $A:0", pair=f"{BOS}:0 $A:0 {BOS}:1 $B:1", special_tokens=[(BOS, bos_id)]
            ),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    if tokenizer.get_vocab_size() != N_VOCAB:
        raise SystemExit(f"the corpus gave {tokenizer.get_vocab_size()} tokens instead of {N_VOCAB}")
    return tokenizer


def write_json(name: str, value: object) -> None:
    """Writes one JSON file of the checkpoint."""
    (DEMO / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """Trains the tokenizer and writes its files."""
    DEMO.mkdir(exist_ok=True)
    tokenizer = train()
    tokenizer.save(str(DEMO / "tokenizer.json"), pretty=False)
    id_of = {name: tokenizer.token_to_id(name) for name in SPECIAL}
    write_json(
        "tokenizer_config.json",
        {
            "added_tokens_decoder": {
                str(id_of[name]): {
                    "content": name,
                    "lstrip": False,
                    "normalized": False,
                    "rstrip": False,
                    "single_word": False,
                    "special": True,
                }
                for name in SPECIAL
            },
            "bos_token": BOS,
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": EOT,
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": 1024,
            "pad_token": PAD,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )
    write_json(
        "generation_config.json",
        {
            "_from_model_config": False,
            "bos_token_id": id_of[BOS],
            "eos_token_id": [id_of[END], id_of[EOT]],
            "pad_token_id": id_of[PAD],
            "do_sample": False,
        },
    )


if __name__ == "__main__":
    main()
