"""`train_sae`: trains an SAE for a model, on a text or on tasks' prompts, as a run.

A training can be watched, stopped and resumed as a discovery can. Its run folder has run.json (kind
"sae") and events.jsonl (the estimate, and the scores on the way), and

    sae/                    the SAE in SAELens's format, for `load_sae` and for SAELens's own
                            `SAE.load_from_disk`
    rows.jsonl              the text as token ids, if it was not a file
    checkpoint.safetensors  the state of the training, until it is finished

    from discovery import load_model, train_sae
    trained = train_sae(load_model("bundled"), "text.txt", "resid_pre.2")
    trained.scores.variance_explained, trained.sae.encode
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

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
from discovery.features.directory import TRAINING_RUN_KIND
from discovery.features.load import load_sae
from discovery.features.sae import SAE
from discovery.features.training.estimate import TrainingEstimate, require_memory, time_training
from discovery.features.training.loop import CHECKPOINT_FILE, TrainingLoop
from discovery.features.training.recipe import RecipeOptions, SAERecipe, make_recipe
from discovery.features.training.scores import Scores, score_sae
from discovery.features.training.text import (
    ROWS_FILE,
    DocumentIndex,
    TrainingInput,
    TrainingRows,
    resolve_text,
)
from discovery.features.training.trainer import Trainer, dead_share, fold_normalisation, write_sae
from discovery.graph import Cost, JsonModel
from discovery.progress import ProgressCallback
from discovery.sites import Site
from discovery.store import (
    SAE_FOLDER,
    OnEvent,
    Run,
    collect_provenance,
    create_run,
    open_run,
    record_outcome,
    utc_timestamp,
)

SAE_SCHEMA = "circuit-scout/sae/1"


@dataclass(frozen=True, kw_only=True)
class TrainedSAE:
    """A finished training.

    Attributes:
        run_id: the run's id.
        path: the run's folder.
        directory: the SAE's folder in it.
        sae: the SAE, loaded for the model.
        recipe: how it was trained.
        scores: scores of the saved SAE on held-out text.
    """

    run_id: str
    path: Path
    directory: Path
    sae: SAE
    recipe: SAERecipe
    scores: Scores


class TextFacts(JsonModel):
    """The text of a training, as run.json names it.

    Attributes:
        name: what the text is called.
        path: the file; None if the text is the run's own `rows.jsonl`.
        fingerprint: sha256 of the content.
    """

    name: str
    path: str | None
    fingerprint: str


class TrainingConfiguration(JsonModel):
    """The configuration of a training in run.json, without the arguments of `load_model`.

    Attributes:
        recipe: how to train.
        text: what to train on.
        memory: bytes that the training may take beside the model; None allows all that is free.
    """

    recipe: SAERecipe
    text: TextFacts
    memory: int | None = None

    @classmethod
    def of(cls, run: Run) -> TrainingConfiguration:
        """Read the configuration of a run.

        Raises:
            StoreError: if it is damaged.
        """
        try:
            return cls.model_validate(run.record.configuration)
        except ValidationError as fault:
            raise StoreError(
                f"The configuration of run {run.id} is damaged ({type(fault).__name__}).",
                "Start a new training.",
            ) from None


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
    **recipe_options: Unpack[RecipeOptions],
) -> TrainedSAE:
    """Train a sparse autoencoder.

    Args:
        text: a file with a document a line (or JSON Lines, see the module `text`); a task or
        several
            tasks, whose prompts of both sides are the documents; the name of a built-in task; or
            prompts.
        site: as in `make_recipe`.
        memory: bytes that the training may take beside the model; None allows all that is free.
        progress: receives the number of tokens that are trained on.
        on_event: receives each event of the run.
        on_begin: receives the run's id as soon as the run can be resumed.
        command: the command that started the training, for the record.
        load: how the model was loaded, so that `resume_training` can load it again. The default is
            what the model says of itself.
        checkpoint_seconds: seconds between two checkpoints, at least.
        recipe_options: options of `make_recipe`: architecture, d_sae, k, l1, tokens, batch,
            learning_rate, context, seed.

    Raises:
        FeatureError: if the site, a number or the text is not allowed.
        MemoryLimitError: if the training does not fit; it says what the training needs.
        Interrupted: if the training is stopped; its `run_id` names the run to resume.
    """
    recipe = make_recipe(model, site, **recipe_options)
    training_text = resolve_text(model, text)
    # Whatever is wrong with the text or the memory is an error before a run folder exists.
    rows = training_text.rows(model, recipe)
    require_memory(model, recipe, memory)
    facts = TextFacts(
        name=training_text.name,
        path=str(training_text.path) if training_text.path else None,
        fingerprint=rows.fingerprint,
    )
    configuration = TrainingConfiguration(recipe=recipe, text=facts, memory=memory)
    arguments = LoadArguments.model_validate(load or load_arguments(model))
    device = model.info.remote or model.info.device
    with create_run(
        runs_dir,
        f"sae-{recipe.site}",
        model_source(model.info),
        {**configuration.model_dump(mode="json"), "load": arguments.model_dump(mode="json")},
        provenance=collect_provenance(recipe.seed, device, command, utc_timestamp(), ("sae-lens",)),
        kind=TRAINING_RUN_KIND,
    ) as run:
        if training_text.content is not None:
            run.save_file(ROWS_FILE, training_text.content)
        if on_begin is not None:
            on_begin(run.id)
        loop = TrainingLoop(
            run=run,
            model=model,
            recipe=recipe,
            rows=rows,
            progress=progress,
            on_event=on_event,
            checkpoint_seconds=checkpoint_seconds,
        )
        return _train_and_score(loop, configuration)


def estimate_training(
    model: Backend,
    text: TrainingInput,
    site: str | Site | None = None,
    *,
    memory: int | None = None,
    **recipe_options: Unpack[RecipeOptions],
) -> tuple[SAERecipe, TrainingEstimate]:
    """Estimate what `train_sae` would take with the same arguments.

    A few forward passes and steps are timed.

    Returns:
        The recipe, and the estimate.

    Raises:
        FeatureError: as in `train_sae`.
        MemoryLimitError: if the training does not fit; it says what the training needs.
    """
    recipe = make_recipe(model, site, **recipe_options)
    require_memory(model, recipe, memory)
    return recipe, time_training(model, recipe, resolve_text(model, text).rows(model, recipe))


def resume_training(
    run_id: str,
    *,
    runs_dir: Path | str | None = None,
    progress: ProgressCallback | None = None,
    on_event: OnEvent | None = None,
) -> TrainedSAE:
    """Continue a training that was interrupted, or return a finished one as it is.

    Raises:
        StoreError: if there is no such run, if another process writes to it, or if its model or its
            text have changed.
    """
    finished = open_run(runs_dir, run_id)
    if finished.record.kind == TRAINING_RUN_KIND and finished.record.status == "completed":
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
    """Continue an interrupted training whose run is open for writing.

    Args:
        on_open: receives the recipe when the model and the text are loaded.

    Raises:
        StoreError: if its model or its text have changed.
    """
    if run.record.kind != TRAINING_RUN_KIND:
        raise StoreError(
            f"The run {run.id} is not a training of an SAE.",
            f"Resume it as what it is: circuit-scout discover --resume {run.id}",
        )
    configuration = TrainingConfiguration.of(run)
    recipe, text = configuration.recipe, configuration.text
    model = reload_model(run)
    path = Path(text.path) if text.path else run.path / ROWS_FILE
    rows = TrainingRows(model, DocumentIndex.of(path, recipe.context), recipe)
    if rows.fingerprint != text.fingerprint:
        raise StoreError(
            f"The text {text.name!r} is not the one that run {run.id} began with.",
            "Restore it, or start a new training.",
        )
    if on_open is not None:
        on_open(recipe)
    run.update(status="running", problem=None)
    loop = TrainingLoop(
        run=run,
        model=model,
        recipe=recipe,
        rows=rows,
        progress=progress,
        on_event=on_event,
        checkpoint_seconds=checkpoint_seconds,
    )
    return _train_and_score(loop, configuration)


def _train_and_score(loop: TrainingLoop, configuration: TrainingConfiguration) -> TrainedSAE:
    """Train, save and score; the run folder records the outcome, whatever ends the training."""
    run = loop.run
    with record_outcome(
        run, lambda: _cost(loop), is_out_of_memory, "fewer features or a smaller batch"
    ):
        require_memory(loop.model, loop.recipe, configuration.memory)
        if not any(event.get("stage") == "estimate" for event in run.events()):
            estimate = time_training(loop.model, loop.recipe, loop.rows, loop.report_progress)
            loop.record_event(
                "estimate",
                estimate.model_dump(mode="json"),
                estimate.describe(),
                "a few passes and steps were timed",
            )
        trained = _save_and_score(loop, loop.train(), configuration.text)
        run.update(
            status="completed", scores=trained.scores.model_dump(mode="json"), cost=_cost(loop)
        )
        run.remove_file(CHECKPOINT_FILE)
        return trained


def _save_and_score(loop: TrainingLoop, trainer: Trainer, text: TextFacts) -> TrainedSAE:
    """Save the SAE, load it as any user would, score it, and save it again with its scores."""
    run, model, recipe = loop.run, loop.model, loop.recipe
    dead = dead_share(trainer)
    fold_normalisation(trainer, recipe)
    directory = run.path / SAE_FOLDER
    training_facts = _training_facts(loop, text)
    metadata: dict[str, Any] = {
        "model_name": Path(model.info.name).name,
        "model_fingerprint": model.info.fingerprint,
        "circuit_scout": training_facts,
    }
    write_sae(trainer, recipe, directory, metadata)
    saved = load_sae(directory, model)
    scores = score_sae(
        model, recipe.parsed_site, loop.rows.heldout, loop.skipped_positions, saved.codes, dead
    )
    training_facts["scores"] = scores.model_dump(mode="json")
    write_sae(trainer, recipe, directory, {**metadata, "l0": scores.l0})
    loop.record_event(
        "scores",
        scores.model_dump(mode="json"),
        scores.describe(),
        f"{scores.tokens:,} held-out positions, scored with the SAE as it was saved",
    )
    return TrainedSAE(
        run_id=run.id,
        path=run.path,
        directory=directory,
        sae=load_sae(directory, model),
        recipe=recipe,
        scores=scores,
    )


def _training_facts(loop: TrainingLoop, text: TextFacts) -> dict[str, Any]:
    """Return what the metadata of the SAE says of its training."""
    return {
        "schema": SAE_SCHEMA,
        "recipe": loop.recipe.model_dump(mode="json"),
        "text": {
            "name": text.name,
            "fingerprint": text.fingerprint,
            "documents": loop.rows.documents,
        },
        "skipped_positions": loop.skipped_positions,
        "created": loop.run.record.created,
    }


def _cost(loop: TrainingLoop) -> Cost:
    return Cost(seconds=loop.seconds, peak_memory_bytes=read_peak_memory())


def _load_finished(run: Run, model: Backend) -> TrainedSAE:
    """Return a finished training from its run folder."""
    directory = run.path / SAE_FOLDER
    return TrainedSAE(
        run_id=run.id,
        path=run.path,
        directory=directory,
        sae=load_sae(directory, model),
        recipe=TrainingConfiguration.of(run).recipe,
        scores=Scores.model_validate(run.record.scores),
    )
