"""However a run's work ends, its folder says so: interrupted and resumable, refused and gone, or failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from discovery.errors import DiscoveryError, Interrupted, MemoryLimitError
from discovery.graph import Cost
from discovery.store.run import Run


@contextmanager
def record_outcome(
    run: Run, cost: Callable[[], Cost], out_of_memory: Callable[[Exception], bool], remedy: str
) -> Iterator[None]:
    """Work on a run.

    Args:
        cost: of what was done, where it is interrupted.
        out_of_memory: whether an exception says that memory ran out.
        smaller: what to start again with then.

    Raises:
        Interrupted: with the run's id, which a fault that can be mended gets too where something was measured.
        MemoryLimitError: where memory ran out.
    """
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as stop:
        run.update(status="interrupted", cost=cost())
        stopped = stop if isinstance(stop, Interrupted) else Interrupted("interrupted")
        stopped.run_id = run.id
        raise stopped from None
    except DiscoveryError as fault:
        if run.events():
            run.update(status="interrupted", problem=fault.cause, cost=cost())
            fault.run_id = run.id
        else:  # nothing was measured: what is wrong would be wrong again
            run.discard()
        raise
    except (
        Exception
    ) as fault:  # recorded, and raised again: a bug must not leave a run that says "running"
        if out_of_memory(fault):
            run.update(status="interrupted", problem="out of memory")
            cure = f"Free memory, or start again with {remedy}; this run can be resumed: {run.id}."
            raise MemoryLimitError("Memory ran out.", cure) from fault
        run.update(status="failed", problem=type(fault).__name__)
        raise
