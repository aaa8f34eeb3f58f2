"""The bundled model's tokenizer: one token a word with its leading space, digits in pairs, punctuation apart.

'When Anna left in 1732,' is split as ▁When ▁Anna ▁left ▁in ▁17 32 , so that a year falls in two as it mostly does under GPT-2's
vocabulary, and decoding joins the pieces without a trace. A word outside the vocabulary becomes <unk>.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from discovery.tasks.builtin import words
from training.corpus import sentences

END = "<|endoftext|>"
UNKNOWN = "<unk>"
_PIECES = r"▁?\d{1,2}|▁?\p{L}+|▁?[^\s\p{L}\d▁]|▁"
_SAMPLE = 60_000


def build_word_tokenizer(seed: int, context: int) -> PreTrainedTokenizerFast:
    """The tokenizer over every word of the lists and of a sample of all sentences, held-out wordings included."""
    tokenizer = Tokenizer(models.WordLevel({UNKNOWN: 0}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="first", split=False),
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    pieces = set(words.YEARS)
    for text in (*islice(sentences(seed, exclude_held_out=False), _SAMPLE), *_lists()):
        pieces.update(piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))
    vocabulary = {piece: index for index, piece in enumerate([END, UNKNOWN, *sorted(pieces)])}
    tokenizer.model = models.WordLevel(vocabulary, unk_token=UNKNOWN)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=UNKNOWN, bos_token=END, eos_token=END, pad_token=END, model_max_length=context,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json, the latter with the class name that every transformers version knows."""
    tokenizer.save_pretrained(folder)
    config = folder / "tokenizer_config.json"
    config.write_text(config.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))


def _lists() -> list[str]:
    """The word lists as texts."""
    nouns = words.PEOPLE + words.THINGS
    return [
        " ".join(
            (
                "The",
                *words.NAMES,
                *words.PLACES,
                *words.OBJECTS,
                *words.EVENTS,
                *words.OTHER_NOUNS,
                *nouns,
                *(f"{n}s" for n in nouns),
            )
        )
    ]
