"""What a resumed run does about arrays that are not as it wrote them.

A damaged file is removed, and the stage that wrote it is done again, with everything after it. The
sets that a search has measured only save work, so the search measures those again that it needs.
What the run has spent stays counted. A journal that lost events is refused where the run is opened
(see `store.checksums`).
"""

from __future__ import annotations

from collections.abc import Iterable

from discovery.agent.saved.run_folder import read_states
from discovery.agent.state import State
from discovery.store import FileDamage, OnEvent, Run

_MEASURED_SETS = "arrays/sets-"


def repair_arrays(run: Run, on_event: OnEvent | None = None) -> None:
    """Remove damaged arrays, and let the run continue from before they were measured.

    The journal says so, and so does `on_event`.

    Args:
        run: the run, open for writing.
        on_event: called with the event if there was damage.

    Raises:
        StoreError: if the journal holds a damaged state.
    """
    damage = run.find_damage()
    if not damage:
        return
    states = read_states(run)
    last = states[-1] if states else State()
    again = {
        part.stage for part in damage if part.stage and not part.file.startswith(_MEASURED_SETS)
    }
    earlier = [state for state in states if not again.intersection(state.done)]
    state = earlier[-1] if earlier else State()
    state = state.with_changes(
        spent=last.spent, seconds=last.seconds, peak_memory_bytes=last.peak_memory_bytes
    )
    for part in damage:
        run.remove_arrays(part.file)
    event = {
        "stage": "resume",
        "kind": "repair",
        "measured": {part.file: part.problem for part in damage},
        "concluded": _describe(damage, [name for name in last.done if name not in state.done]),
        "why": "their checksums are not those in the journal",
        "forward_equivalents": state.spent,
    }
    run.append_event({**event, "state": state.model_dump(mode="json", by_alias=True)})
    if on_event is not None:
        on_event(event)


def _describe(damage: Iterable[FileDamage], stages: list[str]) -> str:
    files = ", ".join(f"{part.file} {part.problem}" for part in damage)
    again = f"measuring again: {', '.join(stages)}" if stages else "measuring again what is needed"
    return f"{files}; {again}"
