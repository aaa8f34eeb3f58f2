"""The bundled model's tokenizer: words with their leading space, pairs of digits, and punctuation.

'When Anna left in 1732,' is split into ▁When ▁Anna ▁left ▁in ▁17 32 , so that a year is two tokens,
as it mostly is under GPT-2's vocabulary, and decoding joins the tokens to the same text. A word
outside the vocabulary becomes <unk>.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from discovery.tasks.builtin import words
from training.corpus import sentences

END_TOKEN = "<|endoftext|>"
UNKNOWN_TOKEN = "<unk>"
_TOKEN_PATTERN = r"▁?\d{1,2}|▁?\p{L}+|▁?[^\s\p{L}\d▁]|▁"
_SAMPLE_SIZE = 60_000  # sentences


def build_word_tokenizer(seed: int, context: int) -> PreTrainedTokenizerFast:
    """Build the tokenizer from all word lists and a sample of sentences.

    The sample includes held-out templates.

    Args:
        seed: draws the sentences.
        context: the largest number of tokens in a prompt.
    """
    tokenizer = Tokenizer(models.WordLevel({UNKNOWN_TOKEN: 0}, unk_token=UNKNOWN_TOKEN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="first", split=False),
            pre_tokenizers.Split(Regex(_TOKEN_PATTERN), "isolated"),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    tokens = set(words.YEARS)
    sample = islice(sentences(seed, exclude_held_out=False), _SAMPLE_SIZE)
    for text in (*sample, _all_listed_words()):
        tokens.update(token for token, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))
    ordered = [END_TOKEN, UNKNOWN_TOKEN, *sorted(tokens)]
    vocabulary = {token: index for index, token in enumerate(ordered)}
    tokenizer.model = models.WordLevel(vocabulary, unk_token=UNKNOWN_TOKEN)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN_TOKEN,
        bos_token=END_TOKEN,
        eos_token=END_TOKEN,
        pad_token=END_TOKEN,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json.

    The class name in the latter is the one that every version of transformers knows.
    """
    tokenizer.save_pretrained(folder)
    config = folder / "tokenizer_config.json"
    config.write_text(config.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))


def _all_listed_words() -> str:
    """Return all word lists as one text."""
    nouns = words.PEOPLE + words.THINGS
    lists = (
        words.NAMES,
        words.PLACES,
        words.OBJECTS,
        words.EVENTS,
        words.OTHER_NOUNS,
        nouns,
        tuple(f"{noun}s" for noun in nouns),
    )
    return " ".join(["The", *(word for listed in lists for word in listed)])
