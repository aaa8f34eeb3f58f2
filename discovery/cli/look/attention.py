"""`circuit-scout look attention`: where heads look from one position."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING

from discovery.cli.arguments import (
    Subparsers,
    add_flag,
    parse_positions,
    parse_text,
    parse_whole_number,
)
from discovery.cli.console import Console, format_columns
from discovery.cli.look.frame import (
    add_technique,
    format_mean,
    format_subject,
    load_subject,
    to_json,
    write,
)

if TYPE_CHECKING:
    from discovery.methods.heads import AttentionPatterns, AttentionShare

_ABOUT = """Show where heads look from one position: the share of each label of a task, or of each
token of a prompt; how spread out it is (entropy), and the share on the first token. With --figure,
name one head: the picture is its whole pattern on the first pair."""


def register_verb(verbs: Subparsers, parents: list[argparse.ArgumentParser]) -> None:
    """Add the technique to the command `look`."""
    parser = add_technique(
        verbs,
        parents,
        "attention",
        help="where heads look from one position",
        about=_ABOUT,
        run=print_attention,
    )
    nodes_help = "heads, as in a9.h6,a9.h9 (default: all)"
    add_flag(parser, "--nodes", "LIST", _parse_nodes, nodes_help)
    position_help = "where they look from: a position or a label (default -1)"
    add_flag(parser, "--position", "P", parse_positions, position_help, default=[-1])
    top_help = "the number of sources to show for each head (default 3)"
    add_flag(parser, "--top", "N", partial(parse_whole_number, 1), top_help, default=3)


def print_attention(args: argparse.Namespace, console: Console) -> None:
    """Print where heads look."""
    subject = load_subject(args, console)
    from discovery.methods.heads import attention_patterns
    from discovery.report.techniques import draw_pattern

    options = subject.options(with_metric=False)
    looks = attention_patterns(
        subject.model,
        subject.task,
        nodes=args.nodes,
        position=args.position[0],
        top=args.top,
        **{name: options[name] for name in ("prompt", "seed", "memory", "progress")},
    )

    def picture() -> bytes | None:
        if looks.patterns is None:
            return None
        names = [looked.node for looked in looks.heads]
        return draw_pattern(looks.patterns.numpy(), names, looks.tokens)

    write(
        args,
        console,
        looks,
        facts=to_json(looks),
        text=_format_patterns(looks),
        picture=picture,
    )


def _format_patterns(looks: AttentionPatterns) -> str:
    heading = f"Attention from position {looks.position} on {format_subject(looks)}, by"
    rows = [("head", "entropy (most)", "first token", "looks most at")]
    for looked in looks.heads:
        entropy = f"{looked.entropy.mean:.2f} ({looked.uniform_entropy:.2f})"
        sources = ", ".join(map(_format_source, looked.sources))
        rows.append((looked.node, entropy, f"{looked.first.mean:.2f}", sources))
    return f"{heading} {looks.counts}.\n{format_columns(rows)}"


def _format_source(share: AttentionShare) -> str:
    name = str(share.source) if share.text is None else f"{share.source} {share.text!r}"
    return f"{name} {format_mean(share.share, 2)}"


def _parse_nodes(name: str, word: str) -> list[str]:
    return [parse_text(name, part.strip()) for part in word.split(",")]
