from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from discovery.cli.arguments import UsageError
from discovery.cli.parser import parse_command_line
from tests.discovery.cli.stand_ins import CommandResult

# The documented interface of `discover`.
DISCOVER = """circuit-scout discover [TASK] [--model M] [--backend auto|transformerlens|nnsight]
    [--device auto|cpu|cuda|mps] [--dtype D] [--device-map auto] [--remote] [--pairs N] [--seed S]
    [--metric NAME] [--universe all|heads] [--budget F] [--memory BYTES] [--exhaustive] [--dry-run]
    [--runs-dir DIR] [--json] [--resume RUN_ID]"""
VALUES = {
    "--model": "gpt2",
    "--backend": "nnsight",
    "--device": "mps",
    "--dtype": "bfloat16",
    "--device-map": "auto",
    "--pairs": "60",
    "--seed": "3",
    "--metric": "kl_divergence",
    "--universe": "heads",
    "--budget": "1e4",
    "--memory": "4GB",
    "--runs-dir": "somewhere",
    "--resume": "ioi-bundled-20261120-153012-a1b2",
}
LINES = [
    "tasks",
    "tasks list",
    "tasks check my.jsonl --model gpt2",
    "tasks check my.jsonl --model gpt2 --json",
    "runs",
    "runs list",
    "runs show ID",
    "runs verify ID",
    *(f"runs export ID --format {name}" for name in ("json", "graphml", "dot", "mermaid")),
    *(
        "runs --json",
        "runs list --json",
        "runs show ID --json",
        "runs verify ID --json",
        "runs export ID --format json --json",
    ),
    "runs features ID --sae saes/one",
    "runs features ID --sae saes/one --positions=-1,end --candidates 4 --memory 4GB --json",
    "sae examples --sae saes/one --text corpus.txt --features 1,2",
    "sae examples --sae saes/one --text corpus.jsonl --features 1 --field body --top 3 --bins 0"
    " --window 64 --json",
    *(
        "models",
        "models list",
        "models info M",
        "models --json",
        "models list --json",
        "models info M --json",
    ),
    *(
        "-v runs",
        "-q runs",
        "runs -v list",
        "runs list -q",
        "tasks check t -v",
        "models info M -q",
        "runs verify ID -q",
        "discover -v",
    ),
]


@pytest.mark.parametrize("name", re.findall(r"--[a-z-]+", DISCOVER))
def test_discover_has_every_flag(name: str) -> None:
    words = [name, *([VALUES[name]] if name in VALUES else [])]
    args = parse_command_line(["discover", *words])
    assert getattr(args, name[2:].replace("-", "_")) not in (None, False)


def test_discover_has_no_other_flag(scout: Callable[..., CommandResult]) -> None:
    usage = scout("discover", "--help").out.partition("\n\n")[0]
    assert set(re.findall(r"--[a-z-]+", usage)) == set(re.findall(r"--[a-z-]+", DISCOVER))
    assert {"[-v]", "[-q]", "[TASK]"} <= set(re.findall(r"\[[^\[\]]+\]", usage))


def test_all_flags_together() -> None:
    flags = [
        word
        for name in re.findall(r"--[a-z-]+", DISCOVER)
        for word in ([name, VALUES[name]] if name in VALUES else [name])
    ]
    args = parse_command_line(["discover", "ioi", *flags])
    assert (args.task, args.pairs, args.budget, args.memory, args.dry_run) == (
        "ioi",
        60,
        1e4,
        4 * 10**9,
        True,
    )
    assert args.command.startswith("circuit-scout discover ioi --model gpt2 ")


@pytest.mark.parametrize("line", LINES)
def test_a_line_is_understood(line: str) -> None:
    args = parse_command_line(line.split())
    assert callable(args.run)
    assert getattr(args, "json", False) == ("--json" in line)
    assert (args.verbose, args.quiet) == ("-v" in line.split(), "-q" in line.split())


def test_flags_stand_before_the_verb_too() -> None:
    assert parse_command_line(["runs", "--json", "--runs-dir", "x", "show", "ID"]).json
    assert parse_command_line(["runs", "--runs-dir", "/x", "show", "ID"]).runs_dir.name == "x"


@pytest.mark.parametrize(
    ("line", "cause", "cure"),
    [
        (
            "discvoer",
            "no 'discvoer'; it has discover, tasks, runs, models",
            "Did you mean discover?",
        ),
        ("runs exprt x", "no 'exprt'; it has list, show, verify, export", "Did you mean export?"),
        ("discover --pair 3", "does not take --pair", "Did you mean --pairs?"),
        (
            "discover --pairs 0",
            "--pairs is '0', and must be a whole number of at least 1",
            "--pairs 100",
        ),
        (
            "discover --seed -1",
            "--seed is '-1', and must be a whole number of at least 0",
            "--seed 100",
        ),
        (
            "discover --budget none",
            "--budget is 'none', and must be a number above 0",
            "--budget 5000",
        ),
        ("discover --memory much", "--memory is 'much', which is not a number of bytes", "4GB"),
        (
            "discover --metric logit_diff",
            "--metric is 'logit_diff'; allowed: logit_difference, prob",
            "--metric logit_difference",
        ),
        ("discover --universe mlps", "--universe is 'mlps'; allowed: all, heads", "--universe all"),
        (
            "discover --backend tl",
            "--backend is 'tl'; allowed: auto, transformerlens, nnsight",
            "--backend auto",
        ),
        (
            "discover --dtype single",
            "--dtype is 'single'; allowed: float32, float64",
            "--dtype float32",
        ),
        ("discover --model", "--model", "circuit-scout discover --help"),
        ("discover a b", "does not take b", "circuit-scout discover --help"),
        (
            "runs features x --sae y --positions a,,b",
            "--positions is 'a,,b', in which a position is missing",
            "end,S2,-1",
        ),
        (
            "sae examples --sae y --text t --features a",
            "--features is 'a', and must be a whole number",
            "--features 100",
        ),
        ("runs show", "ID", "circuit-scout runs show --help"),
        (
            "runs export x --format png",
            "--format is 'png'; allowed: json, graphml, dot, mermaid",
            "--format json",
        ),
        ("tasks check", "TASK", "circuit-scout tasks check --help"),
        ("--json", "does not take --json", "circuit-scout --help"),
        ("-v -q runs", "-v and -q", "one of them"),
        ("runs -v list -q", "-v and -q", "one of them"),
    ],
)
def test_a_bad_command_line_names_the_value_and_a_fix(
    line: str, cause: str, cure: str, scout: Callable[..., CommandResult]
) -> None:
    with pytest.raises(UsageError) as caught:
        parse_command_line(line.split())
    assert cause in caught.value.cause
    assert cure in caught.value.cure
    assert scout(*line.split()) == CommandResult(
        2, "", f"error: {caught.value.cause}\nfix: {caught.value.cure}\n"
    )


def test_no_command_prints_the_help(scout: Callable[..., CommandResult]) -> None:
    bare = scout()
    assert (bare.status, bare.err) == (0, "")
    assert bare == scout("--help") == scout("-h")
    assert all(f"\n    {noun} " in bare.out for noun in ("discover", "tasks", "runs", "models"))
    assert "Exit status: 0" in bare.out


def test_the_version(scout: Callable[..., CommandResult]) -> None:
    assert re.fullmatch(r"circuit-scout \d+\.\d+\S*\n", scout("--version").out)
