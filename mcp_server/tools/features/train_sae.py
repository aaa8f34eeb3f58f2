"""Training a sparse autoencoder, in the background."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mcp.types import CallToolResult
from pydantic import Field

from discovery.tasks import BUILTIN, TEXT_PAIRS
from mcp_server.errors import ServerError
from mcp_server.session import Session, lazy_discovery
from mcp_server.session.devices import run_in_thread
from mcp_server.session.models import LoadedModel
from mcp_server.tools.arguments import MAX_PAIRS, Seed, TaskName, ToolContext
from mcp_server.tools.measurement import Measurement, run_measurement, session_of
from mcp_server.tools.result import (
    CostView,
    Result,
    cost_view,
    round_number,
    to_call_result,
    to_megabytes,
)
from mcp_server.tools.run_state import (
    ProgressView,
    follow_hint,
    read_run,
    resume_hint,
    resume_run,
    wait_for_run,
)

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
    passes: float | None = Field(description="How often the text is read.")


class ScoresView(Result):
    """The SAE on held-out text; losses in nats a token. Spliced: with the reconstruction put in."""

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
        description="estimated; running: poll run_status; completed; interrupted: call again with "
        "run_id; failed."
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
    context: ToolContext,
    model_id: Annotated[
        str | None,
        Field(description="Handle from load_model; needed unless run_id is given.", max_length=500),
    ] = None,
    text: Annotated[
        str | None,
        Field(
            description='Text file with a document a line (.jsonl: {"text"} or {"tokens"}); or '
            "give task.",
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
            description="For example resid_pre.2; default: the residual stream in the middle.",
            max_length=60,
        ),
    ] = None,
    architecture: Annotated[
        Literal["topk", "standard"], Field(description="topk, or standard: ReLU and L1.")
    ] = "topk",
    features: Annotated[
        int | None,
        Field(description="Default: 8 times the width of the activation.", ge=2, le=2**20),
    ] = None,
    k: Annotated[
        int | None, Field(description="Features kept at each position (topk).", ge=1)
    ] = None,
    tokens: Annotated[
        int | None,
        Field(description="Tokens to train on; default: 1,000 a feature.", ge=64, le=2**40),
    ] = None,
    pairs: Annotated[
        int | None, Field(description="Pairs of the task.", ge=1, le=100 * MAX_PAIRS)
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
    """Trains a sparse autoencoder on one site of the loaded model, through SAELens, as a run.
    Memory and time are estimated first. The run's stages say L0, variance explained, dead features
    and loss recovered. When it is finished, its run_id is an `sae` for sae_top_features.

    Use it if there is no SAE for this model and site. Not for the bundled model's resid_pre.2,
    which has one. Text like the prompts to be studied is best; a task's prompts alone are few.
    Cost: minutes for a small model, hours for gpt2 on a CPU. It returns after wait_seconds at the
    latest: then poll run_status; cancel_run stops it.

    Example: train_sae(model_id="bundled", task="ioi", site="resid_pre.1", features=256,
    tokens=200000).
    """
    session = session_of(context)
    if run_id is not None:
        background = await run_in_thread(partial(resume_run, session, run_id, "sae"))
        if background is not None:
            await wait_for_run(context, background, wait_seconds)
        return await run_in_thread(partial(_read_training, session, run_id))
    if model_id is None or (text is None) == (task is None):
        missing = "model_id" if model_id is None else "one of text and task"
        raise ServerError(
            f"train_sae needs {missing}, or the run_id of a training to resume.",
            "Call train_sae(model_id=..., text=...).",
        )
    loaded = session.models.get(model_id)
    recipe = {
        "site": site,
        "architecture": architecture,
        "d_sae": features,
        "k": k,
        "tokens": tokens,
        "seed": seed,
    }
    read_text = partial(_resolve_text, session, loaded, text, task, pairs, seed)
    if dry_run:
        return await _estimate(context, model_id, read_text, recipe)
    started = await run_in_thread(lambda: session.runs.start_training(loaded, read_text(), recipe))
    await wait_for_run(context, started, wait_seconds)
    return await run_in_thread(partial(_read_training, session, str(started.run_id)))


def _resolve_text(
    session: Session,
    loaded: LoadedModel,
    text: str | None,
    task: TaskName | None,
    pairs: int | None,
    seed: int,
) -> TrainingInput:
    """Return what is trained on: a file that may be read, or the prompts of a task.

    Raises:
        PathNotAllowedError: if the file may not be read.
        TaskError: if something is wrong with the task.
    """
    if text is not None:
        return session.allowed_paths.resolve_text_file(text, "Give task='ioi' instead")
    n_pairs = pairs or (TEXT_PAIRS if task in BUILTIN else None)
    return session.get_task(loaded, str(task), n_pairs, seed)


async def _estimate(
    context: ToolContext,
    model_id: str,
    read_text: Callable[[], TrainingInput],
    recipe: dict[str, Any],
) -> CallToolResult:
    """Return what the training would take, without starting it."""

    def measure(measurement: Measurement) -> TrainSaeResult:
        full_recipe, estimate = lazy_discovery.estimate_training(
            measurement.backend, read_text(), memory=measurement.memory, **recipe
        )
        facts = full_recipe.model_dump()
        return TrainSaeResult(
            **_recipe_fields(facts),
            run_id=None,
            status="estimated",
            expected=_estimate_view(estimate.model_dump()),
            scores=None,
            progress=None,
            problem=None,
            folder=None,
            next="Call again without dry_run to train.",
            cost=None,
        )

    return to_call_result(await run_measurement(context, model_id, "estimate", measure))


def _read_training(session: Session, run_id: str) -> CallToolResult:
    """Return the present state of a training."""
    state = read_run(session, run_id)
    record = state.run.record
    estimates = (
        event["measured"] for event in state.run.events() if event.get("stage") == "estimate"
    )
    following = {
        "running": follow_hint(run_id),
        "completed": f'sae_top_features(model_id=..., sae="{run_id}", task=...) uses it.',
    }
    recipe: Any = record.configuration["recipe"]
    result = TrainSaeResult(
        **_recipe_fields(recipe),
        run_id=run_id,
        status=state.status,
        expected=_estimate_view(next(estimates, None)),
        scores=_scores_view(record.scores),
        progress=state.progress,
        problem=state.problem,
        folder=state.folder,
        next=following.get(state.status, resume_hint(run_id, "sae")),
        cost=cost_view(record.cost) if state.status != "running" else None,
    )
    return to_call_result(result)


def _recipe_fields(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the result that a recipe gives, as it is recorded in a run."""
    return {
        "site": recipe["site"],
        "architecture": recipe["architecture"],
        "features": recipe["d_sae"],
        "k": recipe["k"],
        "steps": recipe["tokens"] // recipe["batch"],
    }


def _estimate_view(estimate: Mapping[str, Any] | None) -> EstimateView | None:
    """Return an estimate as it is recorded in a run; None if there is none."""
    if not estimate:
        return None
    return EstimateView(
        seconds=round_number(estimate["seconds"], 3),
        memory_megabytes=to_megabytes(estimate["memory_bytes"]),
        passes=round_number(estimate["epochs"], 3),
    )


def _scores_view(scores: Mapping[str, Any] | None) -> ScoresView | None:
    """Return the scores of a training; None if it has none yet."""
    if not scores:
        return None

    def score(name: str) -> Any:
        value = scores.get(name)
        return round_number(value, 4) if isinstance(value, float) else value

    return ScoresView(**{name: score(name) for name in _SCORE_FIELDS})
