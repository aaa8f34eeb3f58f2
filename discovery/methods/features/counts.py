"""Arguments that count something."""

from __future__ import annotations

from discovery.errors import MeasurementError


def require_counts(**counts: tuple[object, int]) -> None:
    """Check that each is a whole number and no less than its least.

    Args:
        counts: the value and its least, by the argument's name.

    Raises:
        MeasurementError: names the first that is not.
    """
    for name, (value, least) in counts.items():
        if type(value) is not int or value < least:
            raise MeasurementError(f"{name} is {value!r}.", f"Give a whole number of at least {least}.")
