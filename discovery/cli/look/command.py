"""`circuit-scout look`: the techniques, one subcommand each."""

from __future__ import annotations

import argparse

from discovery.cli.arguments import Subparsers
from discovery.cli.look import attention, attribution, edits, heads, interpret, lens, probe, weights

_ABOUT = """Look at what the parts of a model do on the clean prompts of a task, or on one prompt.
Nothing is searched and nothing is judged: each technique measures one thing."""
_TECHNIQUES = (lens, attribution, attention, heads, weights, interpret, probe, edits)


def register(commands: Subparsers, parents: list[argparse.ArgumentParser]) -> None:
    """Add the command and its subcommands to the parser."""
    parser = commands.add_parser(
        "look", parents=parents, help="see what heads and layers do", description=_ABOUT
    )
    parser.set_defaults(
        run=lambda args, console: console.write_result(parser.format_help().rstrip()),
        parser=parser,
    )
    verbs = parser.add_subparsers(title="techniques", metavar="TECHNIQUE")
    for technique in _TECHNIQUES:
        technique.register_verb(verbs, parents)
