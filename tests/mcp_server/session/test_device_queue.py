"""Which job has a device: calls in order, and runs that give way between their batches."""

from __future__ import annotations

from mcp_server.session.device_queue import MAX_CALLS_BETWEEN_BATCHES, DeviceQueue, Place


def enter(queue: DeviceQueue, *names: str, gives_way: bool = False) -> list[Place]:
    places = [Place(name, gives_way=gives_way) for name in names]
    for place in places:
        queue.enter(place)
    return places


def order_served(queue: DeviceQueue, places: list[Place]) -> list[str]:
    """Let each job leave as soon as it has the device, and return the order."""
    served = []
    while places:
        (holder,) = (place for place in places if place.turn.is_set())
        served.append(holder.description)
        places = [place for place in places if place is not holder]
        queue.leave(holder)
    return served


def test_calls_are_served_in_the_order_in_which_they_came() -> None:
    queue = DeviceQueue()
    names = [str(number) for number in range(50)]
    assert order_served(queue, enter(queue, *names)) == names


def test_a_call_that_leaves_while_it_waits_holds_nobody_up() -> None:
    queue = DeviceQueue()
    first, second, third = enter(queue, "first", "second", "third")
    queue.leave(second)
    queue.leave(first)
    queue.leave(first)  # a second time changes nothing
    assert third.turn.is_set()
    assert not second.turn.is_set()


def test_a_run_gives_way_to_calls_and_goes_on_before_later_runs() -> None:
    queue = DeviceQueue()
    run, later_run = enter(queue, "run", "later run", gives_way=True)
    assert not queue.give_way(run)  # nobody waits but another run
    call, second_call = enter(queue, "call", "second call")
    assert run.turn.is_set()
    assert not call.turn.is_set()
    assert queue.give_way(run)
    assert not run.turn.is_set()
    order = order_served(queue, [run, later_run, call, second_call])
    assert order == ["call", "second call", "run", "later run"]


def test_a_call_gives_way_to_nobody() -> None:
    queue = DeviceQueue()
    call, _ = enter(queue, "call", "next")
    assert not queue.give_way(call)
    assert call.turn.is_set()


def test_a_run_has_a_batch_after_a_bounded_number_of_calls() -> None:
    queue = DeviceQueue()
    (run,) = enter(queue, "run", gives_way=True)
    names = [str(number) for number in range(2 * MAX_CALLS_BETWEEN_BATCHES)]
    calls = enter(queue, *names)
    assert queue.give_way(run)
    for place in calls[:MAX_CALLS_BETWEEN_BATCHES]:
        assert place.turn.is_set()
        queue.leave(place)
    assert run.turn.is_set()
    assert queue.give_way(run)  # after its batch the other calls are served
    assert calls[MAX_CALLS_BETWEEN_BATCHES].turn.is_set()


def test_a_run_that_ends_while_it_gives_way_is_not_served_again() -> None:
    queue = DeviceQueue()
    (run,) = enter(queue, "run", gives_way=True)
    call, next_call = enter(queue, "call", "next call")
    queue.give_way(run)
    queue.leave(run)
    queue.leave(call)
    queue.leave(next_call)
    assert not run.turn.is_set()
    (last,) = enter(queue, "last")
    assert last.turn.is_set()
