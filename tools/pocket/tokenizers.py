"""Build the pocket tokenizers from captions, in the files of the public CLIP-L and T5 ones."""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from tools.pocket.captions import describe
from tools.pocket.scenes import random_scene

T5_LENGTH = 40
CLIP_LENGTH = 77
START, END = "<|startoftext|>", "<|endoftext|>"
#: How CLIP cuts text into words: contractions, letters, single digits, runs of the rest.
CLIP_WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def corpus(count: int = 20_000) -> list[str]:
    rng = random.Random("corpus")
    return [describe(random_scene(rng), rng).text for _ in range(count)]


def t5_pieces(texts: list[str]) -> list[tuple[str, float]]:
    """Whole words with the logarithm of their frequency, then printable ASCII one by one.

    A vocabulary this small would be cut into odd pieces by a trainer; whole words suit it better.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        for word in text.split():
            counts.update(re.findall(r"\u2581?\w+|\u2581?[^\w\u2581]", "\u2581" + word))
    total = counts.total()
    words = {word: math.log(count / total) for word, count in counts.most_common()}
    letters = {chr(c): -20.0 for c in range(33, 127)} | {"\u2581": -20.0}
    specials = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return specials + list((letters | words).items())


def train_t5(texts: list[str], folder: Path) -> None:
    """A unigram model that ends in </s>."""
    tokenizer = tokenizers.Tokenizer(models.Unigram(t5_pieces(texts), unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "T5Tokenizer",
        "model_max_length": T5_LENGTH,
        "extra_ids": 0,
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def train_clip(texts: list[str], folder: Path) -> None:
    """A byte-pair model whose words end in </w>, as vocab.json and merges.txt."""
    tokenizer = tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    words = pre_tokenizers.Split(tokenizers.Regex(CLIP_WORDS), "removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        end_of_word_suffix="</w>",
        initial_alphabet=alphabet,
        special_tokens=alphabet + [c + "</w>" for c in alphabet],
    )
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.model.save(str(folder))  # vocab.json and merges.txt
    path = folder / "vocab.json"
    vocab = json.loads(path.read_text())
    vocab |= {START: len(vocab), END: len(vocab) + 1}
    path.write_text(json.dumps(vocab, ensure_ascii=False) + "\n")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": CLIP_LENGTH,
        "do_lower_case": True,
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "unk_token": END,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def main(folder: Path) -> None:
    texts = corpus()
    train_t5(texts, folder / "tokenizer_2")
    train_clip(texts, folder / "tokenizer")
