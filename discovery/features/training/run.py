"""`train_sae`: a dictionary for a model, trained on a text or on tasks' prompts, as a run that can be watched, stopped and resumed.

The run's folder is that of a discovery: run.json (kind "sae"), events.jsonl (the estimate, what the scores were on the way), and

    sae/                    the dictionary, in SAELens's format: `load_sae` opens it, and SAELens's own `SAE.load_from_disk`
    rows.jsonl              what was trained on, where that was no file
    checkpoint.safetensors  while it is not finished

    from discovery import load_model, train_sae
    trained = train_sae(load_model("bundled"), "text.txt", "resid_pre.2")
    trained.scores.variance_explained, trained.sae.encode
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from discovery.backends.base import Backend
from discovery.backends.hardware.memory import is_out_of_memory, read_peak_memory
from discovery.backends.loading.load_arguments import (
    LoadArguments,
    load_arguments,
    model_source,
    reload_model,
)
from discovery.errors import StoreError
from discovery.features.directory import SAE_FOLDER
from discovery.features.load import load_sae
from discovery.features.sae import SAE
from discovery.features.training.estimate import TrainingEstimate, require_memory, time_training
from discovery.features.training.loop import CHECKPOINT_FILE, OnEvent, TrainingLoop
from discovery.features.training.recipe import SAERecipe, make_recipe
from discovery.features.training.scores import Scores, score_sae
from discovery.features.training.text import (
    ROWS_FILE,
    DocumentIndex,
    TrainingInput,
    TrainingRows,
    resolve_text,
)
from discovery.features.training.trainer import Trainer, dead_share, fold_normalisation, write_sae
from discovery.graph import Cost
from discovery.progress import ProgressCallback
from discovery.sites import Site
from discovery.store import (
    Run,
    RunKind,
    collect_provenance,
    create_run,
    open_run,
    record_outcome,
    utc_timestamp,
)

RUN_KIND: RunKind = "sae"
SAE_SCHEMA = "circuit-scout/sae/1"


@dataclass(frozen=True)
class TrainedSAE:
    """A finished training.

    Attributes:
        path: the run's folder. directory: the dictionary's in it. scores: on held-out text, of the dictionary as it was saved.
    """

    run_id: str
    path: Path
    directory: Path
    sae: SAE
    recipe: SAERecipe
    scores: Scores


def train_sae(
    model: Backend,
    text: TrainingInput,
    site: str | Site | None = None,
    *,
    memory: int | None = None,
    runs_dir: Path | str | None = None,
    progress: ProgressCallback | None = None,
    on_event: OnEvent | None = None,
    on_begin: Callable[[str], None] | None = None,
    command: str | None = None,
    load: LoadArguments | Mapping[str, Any] | None = None,
    checkpoint_seconds: float = 30.0,
    **asked: Any,
) -> TrainedSAE:
    """Train a sparse autoencoder.

    Args:
        text: a file with a document a line (or JSON Lines, see `pieces`), a task or several (the prompts of their pairs, both sides),
            the name of a built-in task, or prompts.
        site: as in `make_recipe`, which also says what else may be asked: architecture, d_sae, k, l1, tokens, batch, learning_rate,
            context, seed.
        memory: bytes that the training may take beside the model.
        progress: told the tokens that are done.
        on_begin: told the run's id once its folder is there and can be resumed.
        load: how the model was opened, so that `resume_training` can open it again.

    Raises:
        FeatureError: a place, a number or a text that cannot be.
        MemoryLimitError: it does not fit; says what it takes.
        Interrupted: stopped from outside; `run_id` says what to resume.
    """
    recipe = make_recipe(model, site, **asked)
    source = resolve_text(model, text)
    rows = source.rows(model, recipe)  # what is wrong is said before there is a run
    require_memory(model, recipe, memory)
    info = model.info
    configuration = {
        "recipe": recipe.model_dump(mode="json"),
        "text": {
            "name": source.name,
            "path": str(source.path) if source.path else None,
            "fingerprint": rows.fingerprint,
        },
        "memory": memory,
        "load": LoadArguments.model_validate(load or load_arguments(model)).model_dump(mode="json"),
    }
    made = collect_provenance(
        recipe.seed, info.remote or info.device, command, utc_timestamp(), ("sae-lens",)
    )
    with create_run(
        runs_dir,
        f"sae-{recipe.site}",
        model_source(info),
        configuration,
        provenance=made,
        kind=RUN_KIND,
    ) as run:
        if source.content is not None:
            run.save_file(ROWS_FILE, source.content)
        if on_begin is not None:
            on_begin(run.id)
        return _train_and_score(
            TrainingLoop(run, model, recipe, rows, progress, on_event, checkpoint_seconds), memory
        )


def estimate_training(
    model: Backend,
    text: TrainingInput,
    site: str | Site | None = None,
    *,
    memory: int | None = None,
    **asked: Any,
) -> tuple[SAERecipe, TrainingEstimate]:
    """What `train_sae` would take, and with which recipe; a few passes and steps are timed.

    Raises:
        MemoryLimitError: it does not fit; says what it takes.
    """
    recipe = make_recipe(model, site, **asked)
    require_memory(model, recipe, memory)
    return recipe, time_training(model, recipe, resolve_text(model, text).rows(model, recipe))


def resume_training(
    run_id: str,
    *,
    runs_dir: Path | str | None = None,
    progress: ProgressCallback | None = None,
    on_event: OnEvent | None = None,
) -> TrainedSAE:
    """Go on with a training that was interrupted; a finished one is returned as it is.

    Raises:
        StoreError: no such run, another process writes to it, or its model or text are not those it began with.
    """
    finished = open_run(runs_dir, run_id)
    if finished.record.kind == RUN_KIND and finished.record.status == "completed":
        return _load_finished(finished, reload_model(finished))
    with open_run(runs_dir, run_id, write=True) as run:
        return continue_training(run, progress=progress, on_event=on_event)


def continue_training(
    run: Run,
    *,
    progress: ProgressCallback | None = None,
    on_event: OnEvent | None = None,
    on_open: Callable[[SAERecipe], None] | None = None,
    checkpoint_seconds: float = 30.0,
) -> TrainedSAE:
    """Go on with an interrupted training that is open for writing.

    Args:
        on_open: told the recipe once the model and the text are there.

    Raises:
        StoreError: where its model or its text are not those it began with.
    """
    if run.record.kind != RUN_KIND:
        raise StoreError(
            f"The run {run.id} is no training of an SAE.",
            f"Go on with it: circuit-scout discover --resume {run.id}",
        )
    recipe, told = _read_configuration(run)
    model = reload_model(run)
    place = Path(str(told["path"])) if told["path"] else run.path / ROWS_FILE
    rows = TrainingRows(model, DocumentIndex.of(place, recipe.context), recipe)
    if rows.fingerprint != told["fingerprint"]:
        raise StoreError(
            f"The text {told['name']!r} is not what run {run.id} began with.",
            "Restore it, or start a new training.",
        )
    if on_open is not None:
        on_open(recipe)
    run.update(status="running", problem=None)
    memory: Any = run.record.configuration.get("memory")
    return _train_and_score(
        TrainingLoop(run, model, recipe, rows, progress, on_event, checkpoint_seconds), memory
    )


def _train_and_score(job: TrainingLoop, memory: int | None) -> TrainedSAE:
    """Train, save and score; whatever ends it, the folder says so."""
    run = job.run
    with record_outcome(
        run, lambda: _cost(job), is_out_of_memory, "fewer features or a smaller batch"
    ):
        require_memory(job.model, job.recipe, memory)
        if not any(event.get("stage") == "estimate" for event in run.events()):
            expected = time_training(job.model, job.recipe, job.rows, job.report_progress)
            job.record_event(
                "estimate",
                expected.model_dump(mode="json"),
                expected.describe(),
                "a few passes and steps were timed",
            )
        trained = _save_and_score(job, job.train())
        run.update(
            status="completed", scores=trained.scores.model_dump(mode="json"), cost=_cost(job)
        )
        run.remove_file(CHECKPOINT_FILE)
        return trained


def _save_and_score(job: TrainingLoop, trainer: Trainer) -> TrainedSAE:
    """The dictionary saved, opened as anyone would, and scored; its scores are then written into its configuration."""
    run, model, recipe = job.run, job.model, job.recipe
    dead = dead_share(trainer)
    fold_normalisation(trainer, recipe)
    directory = run.path / SAE_FOLDER
    text = cast(dict[str, Any], run.record.configuration["text"])
    metadata: dict[str, Any] = {
        "model_name": Path(model.info.name).name,
        "model_fingerprint": model.info.fingerprint,
        "circuit_scout": {
            "schema": SAE_SCHEMA,
            "recipe": recipe.model_dump(mode="json"),
            "text": {
                "name": text["name"],
                "fingerprint": text["fingerprint"],
                "documents": job.rows.documents,
            },
            "skipped_positions": job.skipped_positions,
            "created": run.record.created,
        },
    }
    write_sae(trainer, recipe, directory, metadata)
    sae = load_sae(directory, model)
    scores = score_sae(
        model, recipe.parsed_site, job.rows.heldout, job.skipped_positions, sae.codes, dead
    )
    metadata["circuit_scout"]["scores"] = scores.model_dump(mode="json")
    write_sae(trainer, recipe, directory, {**metadata, "l0": scores.l0})
    job.record_event(
        "scores",
        scores.model_dump(mode="json"),
        scores.describe(),
        f"{scores.tokens:,} held-out positions, the dictionary as saved",
    )
    return TrainedSAE(run.id, run.path, directory, load_sae(directory, model), recipe, scores)


def _cost(job: TrainingLoop) -> Cost:
    return Cost(seconds=job.seconds, peak_memory_bytes=read_peak_memory())


def _load_finished(run: Run, model: Backend) -> TrainedSAE:
    """A finished training, as its folder has it."""
    recipe, _ = _read_configuration(run)
    directory = run.path / SAE_FOLDER
    return TrainedSAE(
        run.id,
        run.path,
        directory,
        load_sae(directory, model),
        recipe,
        Scores.model_validate(run.record.scores),
    )


def _read_configuration(run: Run) -> tuple[SAERecipe, Mapping[str, Any]]:
    told: Any = run.record.configuration
    try:
        return SAERecipe.model_validate(told["recipe"]), told["text"]
    except (ValidationError, KeyError) as fault:
        raise StoreError(
            f"The configuration of run {run.id} is damaged ({type(fault).__name__}).",
            "Start a new training.",
        ) from None
