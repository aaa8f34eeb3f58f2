"""Max-activating examples: where in a text features fire most, and what lesser activations look like.

The text is read once, as a stream, in windows of so many tokens; of each window a feature's peak is one context. Kept are the strongest
contexts and an even sample of all in which it fires, from which bins of equal share are filled: the top alone shows a feature at its
clearest and hides what else it fires on (Bills et al. 2023; Bricken et al. 2023, "interval" examples). The first position of a window
is left out, for attention rests on it whatever it says. What was found is kept on disk under a fingerprint of model, dictionary, text and
settings, and given again without a pass.

    from discovery import feature_examples
    found = feature_examples(model, "gpt2-small-res-jb/blocks.8.hook_resid_pre", "corpus.txt", [1234, 5678])
    found.features[0].top[0].text, found.features[0].density
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


@dataclass(frozen=True)
class FeatureExamples:
    """Where features fire in a text.

    Attributes:
        positions: that were looked at. windows, documents: read.
        fingerprint: of model, dictionary, text and settings; None of a text that can be read once only. cached: found on disk.
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
    """Look for features in a text.

    Args:
        sae: as in `sae_top_features`.
        text: a file (a line is a document; .jsonl: its `field`, "tokens", or the sides of a task's pairs), a task or the name of a
            built-in one, or prompts.
        features: their numbers, at most 256.
        sampling: windows, how many examples, bins; the defaults where None.
        cache: where to keep what was found; the user's cache folder where True, nowhere where False.

    Raises:
        FeatureError: an SAE that does not fit, or a feature it does not have.
        MeasurementError: a text that cannot be read or run, or settings that cannot be.
        Interrupted: from `progress`; nothing is kept then.
    """
    began = time.monotonic()
    how = sampling or Sampling()
    sae = open_sae(sae, model)
    wanted = _check_features(sae, features)
    texts = DocumentStream.of(
        load_task(text, model) if isinstance(text, str) and text in BUILTIN else text, field
    )
    drawer = _disk_cache(cache, model, sae, texts, wanted, how)
    if drawer is not None and (found := _load_cached(drawer)) is not None:
        return replace(
            found,
            cached=True,
            text=texts.name,
            sae=sae.name,
            cost=MeasurementCost(0.0, time.monotonic() - began),
        )
    reader = TextReader(model, sae, wanted, how, progress)
    reader.read(texts)
    cards = tuple(
        make_dashboard(model, sae, feature, kept, reader.firing_totals(i), how)
        for i, (feature, kept) in enumerate(reader.collectors.items())
    )
    made = FeatureExamples(
        cards,
        sae.name,
        texts.name,
        reader.documents,
        reader.windows,
        reader.positions,
        how,
        drawer.fingerprint if drawer else None,
        False,
        (*reader.warnings(), *sae.warnings),
        MeasurementCost(reader.forward_equivalents, time.monotonic() - began),
    )
    if drawer is not None:
        drawer.save(asdict(made))
    return made


def _disk_cache(
    cache: Path | str | bool,
    model: Backend,
    sae: SAE,
    texts: DocumentStream,
    features: tuple[int, ...],
    how: Sampling,
) -> DiskCache | None:
    """Where the answer is kept; None where it is not to be, or the text cannot be told from another."""
    if cache is False or texts.fingerprint is None:
        return None
    info = model.info
    asked = {
        "model": [info.fingerprint, info.backend, info.dtype],
        "sae": [sae.fingerprint, f"{sae.reads.kind}.{sae.reads.layer}", sae.link(0), sae.warnings],
        "text": [texts.fingerprint, texts.field],
        "features": features,
        "sampling": asdict(how),
    }
    return DiskCache.of("examples", asked, None if cache is True else cache)


def _load_cached(drawer: DiskCache) -> FeatureExamples | None:
    """What was found before; None where nothing was, or in another form."""
    facts = drawer.load()
    try:
        return None if facts is None else TypeAdapter(FeatureExamples).validate_python(facts)
    except ValidationError:  # made by another version, or damaged: found anew and replaced
        return None


def _check_features(sae: SAE, features: Sequence[int]) -> tuple[int, ...]:
    given: object = features
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise MeasurementError(f"features is {given!r}.", "Give a list of their numbers.")
    wanted = tuple(dict.fromkeys(sae.require_feature(feature) for feature in features))
    if not 0 < len(wanted) <= MAX_FEATURES:
        raise MeasurementError(
            f"{len(wanted)} features were asked for.", f"Ask for 1 to {MAX_FEATURES} at a time."
        )
    return wanted
