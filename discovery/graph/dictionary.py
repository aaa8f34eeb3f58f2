"""Features of sparse autoencoders in a record: what is known of each, and of the dictionary that it is from."""

from __future__ import annotations

from discovery.graph.base import Effect, NodeId, Number, Record
from discovery.sites import FeatureSite


class FeatureFacts(Record):
    """What is known of a feature beyond what patching it does. Effects are shares of m(clean) − m(corrupted), as a node's.

    Attributes:
        index: its number in the dictionary.
        site: where it is written, as in `dictionaries`.
        activation: the largest among the positions looked at, mean over pairs, in its own units.
        attribution: what patching it does to first order, on the pairs that it was found on.
        removal: what setting it to 0 does, beside the node's effect, which sets it to its corrupted value.
        control_p: the share of pushes as far along other features' directions that do as much.
        fires_on: tokens. promotes, suppresses: tokens whose logits it moves most directly.
        link: its page on Neuronpedia.
    """

    index: int
    site: FeatureSite
    activation: Effect | None = None
    attribution: Effect | None = None
    removal: Effect | None = None
    control_p: Number = None
    fires_on: tuple[str, ...] = ()
    promotes: tuple[str, ...] = ()
    suppresses: tuple[str, ...] = ()
    link: str | None = None


class Dictionary(Record):
    """A sparse autoencoder whose features stand beside the circuit. They enter no condition and no verdict.

    Attributes:
        sae: as it was asked for.
        fingerprint: sha256 of its weights.
        layer: of the site that it writes.
        site: what it writes. reads: what it encodes, the same but for transcoders: kind and layer.
        d_sae: how many features it has.
        positions: those looked at; None is all.
        variance_explained: on the pairs that the features were verified on.
        l0: features that are not 0 at a position.
        share: of the metric that survives its reconstruction.
        found_on: how many pairs the features were found on; verified_on: how many they were verified on.
        candidates: features that attribution put first, the first first; those that hold are nodes.
        warnings: a poor reconstruction stands first.
        note: what the features are to the verdict.
        evidence: ids of the results that the numbers come from.
    """

    sae: str
    fingerprint: str
    layer: int
    site: FeatureSite
    reads: str
    d_sae: int
    positions: tuple[int | str, ...] | None = None
    variance_explained: Number = None
    l0: Number = None
    share: Number = None
    found_on: int | None = None
    verified_on: int | None = None
    candidates: tuple[NodeId, ...] = ()
    warnings: tuple[str, ...] = ()
    note: str | None = None
    evidence: tuple[str, ...] = ()
