"""`circuit-scout look weights`: what a head's weights write, match and read."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from discovery.cli.arguments import (
    Subparsers,
    UsageError,
    add_flag,
    add_json_flag,
    parse_text,
    parse_whole_number,
)
from discovery.cli.console import Console, format_columns
from discovery.cli.look.frame import add_load_flags, parse_figure_path, to_json, write
from discovery.cli.model_and_task import load_request, load_requested_model

if TYPE_CHECKING:
    from discovery.methods.heads import (
        ChanceScore,
        CircuitEntry,
        Composition,
        HeadWeights,
        VocabularyCircuit,
    )

_ABOUT = """Read the weights of one head: which tokens it writes for the tokens that it reads (OV),
which tokens' queries match which tokens' keys (QK), and how strongly it reads earlier heads and is
read by later ones (Q, K and V composition). Scores stand beside what shuffled tokens and random
rotations give."""


def register_verb(verbs: Subparsers, parents: list[argparse.ArgumentParser]) -> None:
    """Add the technique to the command `look`."""
    parser = verbs.add_parser(
        "weights", parents=parents, help="what a head's weights write and match", description=_ABOUT
    )
    parser.add_argument("node", metavar="HEAD", help="the head, as in a9.h6")
    add_load_flags(parser)
    tokens_help = "so many tokens of the vocabulary are read (default 4096)"
    add_flag(parser, "--tokens", "N", partial(parse_whole_number, 8), tokens_help)
    words_help = "these words are read instead, each with a space before it: Mary,John,…"
    add_flag(parser, "--words", "LIST", _parse_words, words_help)
    top_help = "the number of rows of each table (default 5)"
    add_flag(parser, "--top", "N", partial(parse_whole_number, 1), top_help, default=5)
    add_flag(parser, "--seed", "S", partial(parse_whole_number, 0), "the seed (default 0)")
    add_flag(parser, "--figure", "FILE", parse_figure_path, "save a picture as PNG")
    add_json_flag(parser)
    parser.set_defaults(run=print_weights, parser=parser)


def print_weights(args: argparse.Namespace, console: Console) -> None:
    """Print what a head's weights say."""
    if args.tokens is not None and args.words is not None:
        raise UsageError("--tokens and --words were given.", "Give one of them.")
    model = load_requested_model(load_request(args), console)
    from discovery.methods.heads import head_weights
    from discovery.report.techniques import draw_bar_panels

    read = args.words if args.words is not None else args.tokens
    weights = head_weights(
        model,
        args.node,
        top=args.top,
        seed=args.seed or 0,
        progress=console.progress,
        **({} if read is None else {"tokens": read}),
    )
    write(
        args,
        console,
        weights,
        facts=to_json(weights),
        text=_format_weights(weights),
        picture=lambda: draw_bar_panels(weights.panels(), title=f"{weights.node}: weights"),
    )


def _format_weights(weights: HeadWeights) -> str:
    shared = f" ({weights.key_value_head})" if weights.key_value_head else ""
    parts = [f"{weights.node}{shared}, {weights.n_tokens} tokens."]
    parts.append(_format_circuit("OV: reads → writes", "→", weights.ov))
    if weights.qk is not None:
        parts.append(_format_circuit("QK: looks → is looked at", "→", weights.qk))
    for title, pairs in (("reads", weights.reads_from), ("is read by", weights.writes_to)):
        if pairs:
            parts.append(f"{title}\n{format_columns(_composition_rows(pairs))}")
    return "\n\n".join(parts)


def _format_circuit(title: str, arrow: str, circuit: VocabularyCircuit) -> str:
    rows = [("most", "value", "least", "value")]
    for large, small in zip(circuit.largest, circuit.smallest, strict=True):
        first, last = _format_pair(large, arrow), _format_pair(small, arrow)
        rows.append((first, f"{large.value:.2f}", last, f"{small.value:.2f}"))
    scores = [
        f"  same token {_format_score(circuit.same_token)}",
        f"  opposite {_format_score(circuit.opposite)}",
        f"  eigenvalue share {_format_score(circuit.eigenvalue_share)}",
    ]
    return "\n".join([title, format_columns(rows), *scores])


def _format_pair(pair: CircuitEntry, arrow: str) -> str:
    return f"{pair.row_text!r} {arrow} {pair.column_text!r}"


def _format_score(score: ChanceScore) -> str:
    low, high = score.chance.low, score.chance.high
    return f"{score.value:.2f} (shuffled {low:.2f} to {high:.2f}, p {score.p:.3f})"


def _composition_rows(pairs: Sequence[Composition]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("writer", "reader", "through", "score", "random", "z", "p")]
    for pair in pairs:
        numbers = (f"{pair.score:.3f}", f"{pair.chance:.3f}", f"{pair.z:.1f}", f"{pair.p:.1e}")
        rows.append((pair.writer, pair.reader, pair.kind.upper(), *numbers))
    return rows


def _parse_words(name: str, word: str) -> list[str]:
    return [f" {parse_text(name, part.strip())}" for part in word.split(",")]
