"""Training a dictionary of one's own, in the background."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mcp.types import CallToolResult
from pydantic import Field

from discovery.tasks import BUILTIN, TEXT_PAIRS
from mcp_server.errors import ServerError
from mcp_server.session import DeviceJob as Job
from mcp_server.session import Session, lazy_discovery
from mcp_server.session.devices import run_in_thread
from mcp_server.session.models import LoadedModel
from mcp_server.session.runs import BackgroundRun
from mcp_server.tools.arguments import MAX_PAIRS, Seed, TaskName, ToolContext
from mcp_server.tools.circuits.discover_circuit import wait_for_run
from mcp_server.tools.result import CostView, Result, cost_view, round_number, to_call_result
from mcp_server.tools.runs.run_status import ProgressView, progress_view

if TYPE_CHECKING:
    from discovery.features.training.text import TrainingInput

_SCORE_FIELDS = (
    "tokens",
    "l0",
    "variance_explained",
    "dead",
    "loss_clean",
    "loss_spliced",
    "loss_zero",
    "loss_recovered",
    "loss_recovered_mean",
)


class EstimateView(Result):
    """What the training takes, beside the model."""

    seconds: float | None
    memory_megabytes: float | None
    passes: float | None = Field(description="Over the text.")


class ScoresView(Result):
    """The dictionary on held-out text; losses in nats a token, spliced: with the reconstruction in place of the activation."""

    tokens: int
    l0: float | None
    variance_explained: float | None
    dead: float | None = Field(
        description="Share of the features that did not fire in the last steps."
    )
    loss_clean: float | None
    loss_spliced: float | None
    loss_zero: float | None
    loss_recovered: float | None = Field(description="(zero - spliced) / (zero - clean).")
    loss_recovered_mean: float | None = Field(
        description="The same with the mean activation in place of zeros."
    )


class TrainSaeResult(Result):
    """What train_sae gives."""

    run_id: str | None
    status: str = Field(
        description="estimated; running: poll run_status; completed; interrupted: call again with run_id; failed."
    )
    site: str
    architecture: str
    features: int
    k: int | None
    steps: int
    expected: EstimateView | None
    scores: ScoresView | None
    progress: ProgressView | None
    problem: str | None
    folder: str | None = Field(description="Where the run is kept, on this machine.")
    next: str
    cost: CostView | None


async def train_sae(
    call: ToolContext,
    model_id: Annotated[
        str | None,
        Field(description="Handle from load_model; needed unless run_id is given.", max_length=500),
    ] = None,
    text: Annotated[
        str | None,
        Field(
            description='Text file with a document a line (.jsonl: {"text"} or {"tokens"}); or give task.',
            max_length=4096,
        ),
    ] = None,
    task: Annotated[
        TaskName | None,
        Field(description="Built-in task or task file whose prompts are trained on."),
    ] = None,
    site: Annotated[
        str | None,
        Field(
            description="As in resid_pre.2; the residual stream in the middle where left out.",
            max_length=60,
        ),
    ] = None,
    architecture: Annotated[
        Literal["topk", "standard"], Field(description="topk, or standard: ReLU and L1.")
    ] = "topk",
    features: Annotated[
        int | None,
        Field(description="8 for each number of the activation where left out.", ge=2, le=2**20),
    ] = None,
    k: Annotated[int | None, Field(description="Features a position keeps (topk).", ge=1)] = None,
    tokens: Annotated[
        int | None, Field(description="1,000 for each feature where left out.", ge=64, le=2**40)
    ] = None,
    pairs: Annotated[
        int | None, Field(description="Of the task.", ge=1, le=100 * MAX_PAIRS)
    ] = None,
    seed: Seed = 0,
    dry_run: Annotated[bool, Field(description="Only estimate time and memory.")] = False,
    run_id: Annotated[
        str | None, Field(description="Resume this interrupted training instead.", max_length=200)
    ] = None,
    wait_seconds: Annotated[
        float, Field(description="How long to wait for the end.", ge=0, le=3600)
    ] = 45,
) -> Annotated[CallToolResult, TrainSaeResult]:
    """Trains a sparse autoencoder on one site of the loaded model, through SAELens, as a run: memory and time are estimated first;
    L0, variance explained, dead features and loss recovered are in its stages. Finished, run_id is an `sae` of sae_top_features.

    Use it where no dictionary exists for this model and site. Not for the bundled model's resid_pre.2, which has one. Text like the
    prompts to be studied is best; a task's prompts alone are few. Cost: minutes for a small model, hours for gpt2 on a CPU; returns
    after wait_seconds: poll run_status, cancel_run stops it.

    Example: train_sae(model_id="bundled", task="ioi", site="resid_pre.1", features=256, tokens=200000).
    """
    session = call.request_context.lifespan_context
    if run_id is not None:
        made = await run_in_thread(partial(_resumed, session, run_id))
        if made is not None:
            await wait_for_run(call, made, wait_seconds)
        return await run_in_thread(partial(_make_result, session, run_id))
    if model_id is None or (text is None) == (task is None):
        missing = "model_id" if model_id is None else "one of text and task"
        raise ServerError(
            f"train_sae needs {missing}, or the run_id of a training to resume.",
            "Call train_sae(model_id=..., text=...).",
        )
    loaded = session.models.get(model_id)
    asked = {
        "architecture": architecture,
        "d_sae": features,
        "k": k,
        "tokens": tokens,
        "seed": seed,
    }
    source = partial(_resolve_text, session, loaded, text, task, pairs, seed)
    if dry_run:
        return await _estimate(call, session, loaded, source, site, asked)
    made = await run_in_thread(
        lambda: session.runs.start_training(loaded, source(), {"site": site, **asked})
    )
    await wait_for_run(call, made, wait_seconds)
    return await run_in_thread(partial(_make_result, session, str(made.run_id)))


def _resolve_text(
    session: Session,
    loaded: LoadedModel,
    text: str | None,
    task: TaskName | None,
    pairs: int | None,
    seed: int,
) -> TrainingInput:
    """What is trained on."""
    if text is not None:
        return session.allowed_paths.resolve_text_file(text, "Give task='ioi' instead")
    return session.get_task(
        loaded, str(task), pairs or (TEXT_PAIRS if task in BUILTIN else None), seed
    )


async def _estimate(
    call: ToolContext,
    session: Session,
    loaded: LoadedModel,
    source: Any,
    site: str | None,
    asked: dict[str, Any],
) -> CallToolResult:
    def job(work: Job) -> Any:
        return lazy_discovery.estimate_training(
            loaded.backend, source(), site, memory=session.settings.memory, **asked
        )

    recipe, expected = await session.devices.run(call, loaded.device, "estimate", job)
    facts = expected.model_dump()
    return to_call_result(
        _build_result(
            None,
            "estimated",
            recipe.model_dump(),
            facts,
            next="Call again without dry_run to train.",
        )
    )


def _resumed(session: Session, run_id: str) -> BackgroundRun | None:
    """The training, at work again; None where it is complete."""
    at_work, run = session.runs.find(run_id), session.runs.open(run_id)
    if run.record.kind != "sae":
        raise ServerError(
            f"The run {run_id} is no training of an SAE.",
            f'Go on with it: discover_circuit(run_id="{run_id}").',
        )
    if at_work is not None:
        return at_work
    return None if run.status == "completed" else session.runs.resume(run_id)


def _make_result(session: Session, run_id: str) -> CallToolResult:
    run, background = session.runs.open(run_id), session.runs.find(run_id)
    record, status = run.record, "running" if background else run.status
    expected = next(
        (event["measured"] for event in run.events() if event.get("stage") == "estimate"), None
    )
    problem = session.runs.problem(run_id)
    told = str(problem) if problem is not None else record.problem
    following = {
        "running": f'run_status(run_id="{run_id}") says how far it is; cancel_run stops it.',
        "completed": f'sae_top_features(model_id=..., sae="{run_id}", task=...) uses it.',
    }
    recipe: Any = record.configuration["recipe"]
    result = _build_result(
        run_id,
        status,
        recipe,
        expected,
        scores=ScoresView(**{name: _round_score(record.scores.get(name)) for name in _SCORE_FIELDS})
        if record.scores
        else None,
        progress=progress_view(background) if background else None,
        problem=session.allowed_paths.redact_run_text(told, record)
        if told and status != "completed"
        else None,
        folder=str(run.path) if session.settings.is_local else None,
        next=following.get(status, f'train_sae(run_id="{run_id}") goes on with it.'),
        cost=cost_view(record.cost) if status != "running" else None,
    )
    return to_call_result(result)


def _build_result(
    run_id: str | None,
    status: str,
    recipe: dict[str, Any],
    expected: dict[str, Any] | None,
    **more: Any,
) -> TrainSaeResult:
    """A result from a recipe and an estimate, as they stand in a run."""
    about = (
        EstimateView(
            seconds=round_number(expected["seconds"], 3),
            memory_megabytes=round_number(expected["memory_bytes"] / 1e6, 3),
            passes=round_number(expected["epochs"], 3),
        )
        if expected
        else None
    )
    empty: dict[str, Any] = dict.fromkeys(("scores", "progress", "problem", "folder", "cost"))
    return TrainSaeResult(
        run_id=run_id,
        status=status,
        site=recipe["site"],
        architecture=recipe["architecture"],
        features=recipe["d_sae"],
        k=recipe["k"],
        steps=recipe["tokens"] // recipe["batch"],
        expected=about,
        **{**empty, **more},
    )


def _round_score(value: Any) -> Any:
    return round_number(value, 4) if isinstance(value, float) else value
