"""What runs on another machine: these few functions travel there as source, with a list of jobs that is plain data.

Nothing else of this package is there, so they use torch and builtins only. The model's weights may not be beside them either: NDIF runs
a block in a process of its own, which sees an activation only where it asks for one. So a weight is never read here (a Linear is shown
the unit vectors), nothing is differentiated, and sites are met in the order of the forward pass. `backends.chart` writes the jobs.

A tensor in a job is itself, or {"rows": [n d], "index": [...]}: the rows of a sweep repeat most of their vectors.
"""

from __future__ import annotations

from typing import Any

import torch


def run_jobs(net: Any, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each job found."""
    return [run_job(net, job) for job in jobs]


def run_job(net: Any, job: dict[str, Any]) -> dict[str, Any]:
    """One forward pass, or the part of it that is needed, and what was seen there."""
    found: dict[str, Any] = {"seen": {}}
    work = {"reference": read_reference, "weights": read_output_weights, "walk": run_walk}[
        job["work"]
    ]
    with net.trace(**job["arguments"]) as tracer:
        work(net, tracer, job, found)
    return found


def resolve(net: Any, path: str) -> Any:
    """The traced module at a dotted path."""
    for name in path.split("."):
        net = net[int(name)] if name.isdigit() else getattr(net, name)
    return net


def unpack_tensor(tensor: Any) -> Any:
    """A tensor of a job, as it was before it was packed."""
    return tensor["rows"][tensor["index"]] if isinstance(tensor, dict) else tensor


def read_reference(net: Any, tracer: Any, job: dict[str, Any], found: dict[str, Any]) -> None:
    """The model's own logits at every position, nothing touched, and how a block hands on the residual stream."""
    stream = resolve(net, job["block"]).output
    found["returns"] = len(stream) if isinstance(stream, tuple) else None
    out = net.output
    logits = out if isinstance(out, torch.Tensor) else out.logits
    found["dtype"] = str(logits.dtype)
    found["logits"] = logits.detach().cpu()


def read_output_weights(net: Any, tracer: Any, job: dict[str, Any], found: dict[str, Any]) -> None:
    """The matrices of some Linears [in out], in forward order: what they make of the unit vectors, less their bias."""
    for number, path in job["linears"]:
        linear = resolve(net, path)
        given = linear.input
        units = torch.eye(given.shape[-1], dtype=given.dtype, device=given.device)
        found["seen"][number] = (linear(units) - linear(torch.zeros_like(units[:1]))).detach().cpu()
    tracer.stop()


def run_walk(net: Any, tracer: Any, job: dict[str, Any], found: dict[str, Any]) -> None:
    """Visit what is wanted, in the order of the forward pass, and stop it once all of it is had."""
    for path in job["open"]:
        resolve(net, path).source  # noqa: B018  # a property that instruments; too late once the layer has begun
    residual = unpack_tensor(job["residual"])
    for number, path in enumerate(job["skip"]):
        block = resolve(net, path)
        if number == 0:
            residual = residual.to(block.input)
        block.skip(
            residual if job["returns"] is None else (residual, *[None] * (job["returns"] - 1))
        )
    entered: dict[int, Any] = {}
    for step in job["steps"]:
        visit_site(net, step, residual, entered, found)
        if step["skip"] is not None:  # the attention of a layer that is started behind it
            resolve(net, step["skip"]).skip((torch.zeros_like(entered[step["layer"]]), None))
    if job["last"] is None:
        tracer.stop()
    unembed = resolve(net, job["unembed"])
    hidden, last = unembed.input, job["last"]
    unembed.input = hidden[
        torch.arange(len(last)).to(hidden.device), last.to(hidden.device)
    ].unsqueeze(1)
    out = net.output
    logits = (out if isinstance(out, torch.Tensor) else out.logits)[:, 0]
    if job["columns"] is not None:
        logits = logits.gather(1, job["columns"].clamp(min=0).to(logits.device))
    found["logits"] = logits.detach().cpu()


def visit_site(
    net: Any, step: dict[str, Any], residual: Any, entered: dict[int, Any], found: dict[str, Any]
) -> None:
    """Read a site, change it, and put it back where it changed."""
    envoy = resolve_first(net, step["paths"])
    given = getattr(envoy, step["side"])
    whole = given[0] if isinstance(given, tuple) else given
    flat = whole.ndim == 2  # OPT's MLP works on [row·pos d_model]
    parts = split_heads(
        step["cut"], whole.reshape(*step["shape"], whole.shape[-1]) if flat else whole
    )
    value = parts[0]
    if step["enter"]:
        value = residual.to(value)
    if step["join"] is not None:
        value = torch.cat([value, unpack_tensor(step["join"]).to(value)])
    for edit in step["edits"]:
        value = apply_edit(edit, value)
    if step[
        "middle"
    ]:  # the residual stream behind the attention is changed through what is added to it
        before = value + entered[step["layer"]]
        after = before
        for edit in step["middle"]:
            after = apply_edit(edit, after)
        value = value + (after - before)
    if step["keep"]:
        entered[step["layer"]] = value
    if step["read"] is not None:
        found["seen"][step["read"]] = value.detach().contiguous().cpu()
    if value is not parts[0]:
        put = merge_heads(step["cut"], value, parts)
        put = put.flatten(0, 1) if flat else put
        setattr(envoy, step["side"], (put, *given[1:]) if isinstance(given, tuple) else put)


def resolve_first(net: Any, paths: list[str]) -> Any:
    """The traced module or operation at the first of these paths that there is."""
    for path in paths[:-1]:
        before, _, name = path.rpartition(".")
        if hasattr(resolve(net, before), name):
            return resolve(net, path)
    return resolve(net, paths[-1])


def apply_edit(edit: dict[str, Any], activation: Any) -> Any:
    """An activation with one change made, as `discovery.interventions.Edit` says."""
    value = unpack_tensor(edit["value"])
    value = (value if edit["index"] is None else value[edit["index"]]).to(activation)
    if edit["operation"] == "add":
        value = activation + value
    elif edit["operation"] == "scale":
        value = activation * value
    else:
        value = value.expand_as(activation)
    where = edit["where"]
    return (
        value
        if where is None
        else torch.where(where.to(activation.device).unsqueeze(-1), value, activation)
    )


def split_heads(cut: Any, whole: Any) -> list[Any]:
    """The site first, [row pos head d_head] where it has heads; behind it all that one Linear made along with it."""
    if cut is None:
        return [whole]
    if cut["ends"] is None and not cut["by_head"]:
        return [whole.unflatten(-1, (-1, cut["d_head"]))]
    if cut["by_head"]:
        parts = list(whole.unflatten(-1, (-1, 3, cut["d_head"])).unbind(-2))
    else:
        parts = [
            part.reshape(*part.shape[:-1], -1, cut["d_head"])
            for part in torch.tensor_split(whole, cut["ends"], -1)
        ]
    return [parts[cut["slot"]], *parts]


def merge_heads(cut: Any, value: Any, parts: list[Any]) -> Any:
    """What stands in the module once the site has this value."""
    if cut is None:
        return value
    if len(parts) == 1:
        return value.flatten(-2)
    made = [value if slot == cut["slot"] else part for slot, part in enumerate(parts[1:])]
    return (
        torch.stack(made, -2).flatten(-3)
        if cut["by_head"]
        else torch.cat([part.flatten(-2) for part in made], -1)
    )
