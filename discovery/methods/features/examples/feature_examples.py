"""Max-activating examples: where features fire most in a text, and what weaker activations look
like.

The text is read once, as a stream, in windows. The peak of a feature in a window is one context.
The strongest contexts are kept, and an even sample of all contexts in which the feature fires, from
which quantile ranges are filled. The strongest contexts alone would show a feature at its clearest
and hide what else it fires on (Bills et al. 2023; the "interval" examples of Bricken et al. 2023).

The first position of a window is left out, because attention rests on it whatever token it has.

The answer is kept on disk under a fingerprint of model, SAE, text and settings, and returned from
there without another pass.

    from discovery import feature_examples
    sae = "gpt2-small-res-jb/blocks.8.hook_resid_pre"
    examples = feature_examples(model, sae, "corpus.txt", [1234, 5678])
    examples.features[0].top[0].text, examples.features[0].density
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from discovery.backends.base import Backend
from discovery.engine.cost import MeasurementCost
from discovery.errors import MeasurementError
from discovery.features import SAE, open_sae
from discovery.methods.features.examples.dashboards import FeatureDashboard, make_dashboard
from discovery.methods.features.examples.disk_cache import DiskCache
from discovery.methods.features.examples.documents import DocumentStream, TextInput
from discovery.methods.features.examples.reader import TextReader
from discovery.methods.features.examples.sampling import Sampling
from discovery.progress import ProgressCallback
from discovery.tasks import BUILTIN, load_task

MAX_FEATURES = 256


@dataclass(frozen=True, kw_only=True)
class FeatureExamples:
    """Where features fire in a text.

    Attributes:
        features: one dashboard for each feature.
        sae: the SAE's name.
        text: the text's name.
        documents: documents read.
        windows: windows read.
        positions: positions read.
        sampling: how the text was read.
        fingerprint: fingerprint of model, SAE, text and settings; None if the text can be read only
            once.
        cached: whether the answer came from disk.
        warnings: what to know about the reading and the SAE.
        cost: the work done.
    """

    features: tuple[FeatureDashboard, ...]
    sae: str
    text: str
    documents: int
    windows: int
    positions: int
    sampling: Sampling
    fingerprint: str | None
    cached: bool
    warnings: tuple[str, ...]
    cost: MeasurementCost


def feature_examples(
    model: Backend,
    sae: SAE | str | Path | None,
    text: TextInput,
    features: Sequence[int],
    *,
    field: str = "text",
    sampling: Sampling | None = None,
    cache: Path | str | bool = True,
    progress: ProgressCallback | None = None,
) -> FeatureExamples:
    """Find where features fire in a text.

    Args:
        sae: as in `sae_top_features`.
        text: a file, a task, the name of a built-in task, or prompts. In a text file a line is a
            document; a line of a .jsonl file holds a document in its `field`, token ids under
            "tokens", or the sides of a task's pair.
        features: numbers of the features, at most 256.
        sampling: how the text is read and how many examples are kept; the default is `Sampling()`.
        cache: the folder in which the answer is kept. True is the user's cache directory, and False
            keeps nothing.

    Raises:
        FeatureError: if the SAE does not fit, or lacks a feature.
        MeasurementError: if the text cannot be read or run, or an argument is wrong.
        Interrupted: from `progress`; nothing is kept then.
    """
    started = time.monotonic()
    sampling = sampling or Sampling()
    sae = open_sae(sae, model)
    numbers = _check_features(sae, features)
    is_builtin = isinstance(text, str) and text in BUILTIN
    documents = DocumentStream.of(load_task(str(text), model) if is_builtin else text, field)
    disk_cache = _disk_cache(cache, model, sae, documents, numbers, sampling)
    if disk_cache is not None and (answer := _load_cached(disk_cache)) is not None:
        return replace(
            answer,
            cached=True,
            text=documents.name,
            sae=sae.name,
            cost=MeasurementCost(0.0, time.monotonic() - started),
        )
    reader = TextReader(model, sae, numbers, sampling, progress)
    reader.read(documents)
    examples = FeatureExamples(
        features=tuple(
            make_dashboard(
                model, sae, feature, reader.collectors[feature], reader.firing_totals(i), sampling
            )
            for i, feature in enumerate(numbers)
        ),
        sae=sae.name,
        text=documents.name,
        documents=reader.documents,
        windows=reader.windows,
        positions=reader.positions,
        sampling=sampling,
        fingerprint=disk_cache.fingerprint if disk_cache else None,
        cached=False,
        warnings=(*reader.warnings(), *sae.warnings),
        cost=MeasurementCost(reader.forward_equivalents, time.monotonic() - started),
    )
    if disk_cache is not None:
        disk_cache.save(asdict(examples))
    return examples


def _disk_cache(
    cache: Path | str | bool,
    model: Backend,
    sae: SAE,
    documents: DocumentStream,
    features: tuple[int, ...],
    sampling: Sampling,
) -> DiskCache | None:
    """Return where the answer is kept, or None if it is not to be kept or has no fingerprint."""
    if cache is False or documents.fingerprint is None:
        return None
    info = model.info
    reads = f"{sae.reads.kind}.{sae.reads.layer}"
    question = {
        "model": [info.fingerprint, info.backend, info.dtype],
        "sae": [sae.fingerprint, reads, sae.link(0), sae.warnings],
        "text": [documents.fingerprint, documents.field],
        "features": features,
        "sampling": asdict(sampling),
    }
    return DiskCache.of("examples", question, None if cache is True else cache)


def _load_cached(disk_cache: DiskCache) -> FeatureExamples | None:
    """Return the kept answer, or None if there is none in the present form.

    An answer in another form was made by another version, or it is damaged. It is computed again
    and replaced.
    """
    answer = disk_cache.load()
    if answer is None:
        return None
    try:
        return TypeAdapter(FeatureExamples).validate_python(answer)
    except ValidationError:
        return None


def _check_features(sae: SAE, features: Sequence[int]) -> tuple[int, ...]:
    """Return the features without repetitions, if the SAE has them."""
    argument: object = features
    if not isinstance(argument, Sequence) or isinstance(argument, str):
        raise MeasurementError(f"features is {features!r}.", "Give a list of feature numbers.")
    numbers = tuple(dict.fromkeys(sae.require_feature(feature) for feature in features))
    if not 0 < len(numbers) <= MAX_FEATURES:
        raise MeasurementError(
            f"{len(numbers)} features were asked for.", f"Ask for 1 to {MAX_FEATURES} at a time."
        )
    return numbers
