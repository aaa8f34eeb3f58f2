"""How the work on a run ends, and what its folder says then.

If it is stopped, or ends with an error that a user can fix, the run is `interrupted` and can be
resumed. If it measured nothing before such an error, its folder is removed. If it ends with a
bug, it is `failed`.
"""

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
    """Work on a run within this context, so that its folder records how the work ends.

    An error of the package gets the run's id if something was measured, so that its reader knows
    which run to resume.

    Args:
        run: the run, open for writing.
        cost: returns the cost so far, which is recorded if the run is interrupted.
        out_of_memory: whether an exception says that memory ran out.
        remedy: what to start again with if memory ran out, such as "fewer pairs".

    Raises:
        Interrupted: if the run was stopped.
        MemoryLimitError: if memory ran out.
    """
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as stop:
        run.update(status="interrupted", cost=cost())
        interruption = stop if isinstance(stop, Interrupted) else Interrupted("interrupted")
        interruption.run_id = run.id
        raise interruption from None
    except DiscoveryError as fault:
        if run.events():
            run.update(status="interrupted", problem=fault.cause, cost=cost())
            fault.run_id = run.id
        else:  # nothing was measured, so there is nothing to resume
            run.discard()
        raise
    except Exception as fault:  # raised again; a bug must not leave a run that says "running"
        if out_of_memory(fault):
            run.update(status="interrupted", problem="out of memory")
            cure = f"Free memory, or start again with {remedy}; this run can be resumed: {run.id}."
            raise MemoryLimitError("Memory ran out.", cure) from fault
        run.update(status="failed", problem=type(fault).__name__)
        raise
