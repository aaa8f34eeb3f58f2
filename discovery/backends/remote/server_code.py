"""The functions that run on another machine: they are sent there as source, with a list of jobs.

Nothing else of this package exists there, so they use torch and builtins only. The model's weights
may not be in the same process either: NDIF runs what is sent in a process of its own, which gets an
activation only when it asks for one. So a weight is never read here (a Linear is applied to the
unit vectors), nothing is differentiated, and sites are visited in forward order. `remote.jobs`
writes the jobs.

A tensor in a job is either a tensor or {"rows": [n d], "index": [...]}, because the rows of a sweep
repeat most of their vectors.
"""

from __future__ import annotations

from typing import Any

import torch


def run_jobs(net: Any, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run jobs one after another, and return the answer of each."""
    return [run_job(net, job) for job in jobs]


def run_job(net: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Run one forward pass, or the part of it that is needed, and return the answer."""
    answer: dict[str, Any] = {"seen": {}}
    kinds = {"reference": read_reference, "weights": read_output_weights, "walk": run_walk}
    work = kinds[job["work"]]
    with net.trace(**job["arguments"]) as tracer:
        work(net, tracer, job, answer)
    return answer


def resolve(net: Any, path: str) -> Any:
    """Return the traced module at a dotted path."""
    for name in path.split("."):
        net = net[int(name)] if name.isdigit() else getattr(net, name)
    return net


def unpack_tensor(tensor: Any) -> Any:
    """Return a tensor of a job as it was before it was packed."""
    return tensor["rows"][tensor["index"]] if isinstance(tensor, dict) else tensor


def read_reference(net: Any, tracer: Any, job: dict[str, Any], answer: dict[str, Any]) -> None:
    """Read the model's own logits at every position, and how long a block's output tuple is."""
    stream = resolve(net, job["block"]).output
    answer["returns"] = len(stream) if isinstance(stream, tuple) else None
    output = net.output
    logits = output if isinstance(output, torch.Tensor) else output.logits
    answer["logits"] = logits.detach().cpu()


def read_output_weights(net: Any, tracer: Any, job: dict[str, Any], answer: dict[str, Any]) -> None:
    """Read the matrices of some Linears [in out], in forward order.

    A matrix is what the Linear makes of the unit vectors, minus its bias.
    """
    for number, path in job["linears"]:
        linear = resolve(net, path)
        hidden = linear.input
        units = torch.eye(hidden.shape[-1], dtype=hidden.dtype, device=hidden.device)
        weight = linear(units) - linear(torch.zeros_like(units[:1]))
        answer["seen"][number] = weight.detach().cpu()
    tracer.stop()


def run_walk(net: Any, tracer: Any, job: dict[str, Any], answer: dict[str, Any]) -> None:
    """Visit sites in forward order, and stop once everything has been read."""
    for path in job["open"]:
        # Reading this property lets the source be traced, if the layer has not begun yet.
        resolve(net, path).source  # noqa: B018
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
        visit_site(net, step, residual, entered, answer)
        if step["skip"] is not None:  # the attention of a layer that is started after it
            resolve(net, step["skip"]).skip((torch.zeros_like(entered[step["layer"]]), None))
    if job["last"] is None:
        tracer.stop()
    unembed = resolve(net, job["unembed"])
    hidden = unembed.input
    last = job["last"]
    rows = torch.arange(len(last)).to(hidden.device)
    unembed.input = hidden[rows, last.to(hidden.device)].unsqueeze(1)
    output = net.output
    logits = (output if isinstance(output, torch.Tensor) else output.logits)[:, 0]
    if job["columns"] is not None:
        logits = logits.gather(1, job["columns"].clamp(min=0).to(logits.device))
    answer["logits"] = logits.detach().cpu()


def visit_site(
    net: Any, step: dict[str, Any], residual: Any, entered: dict[int, Any], answer: dict[str, Any]
) -> None:
    """Read a site, apply its edits, and put the result back if it has changed.

    `entered` holds for some layers the residual stream that entered them.
    """
    envoy = resolve_first(net, step["paths"])
    io = getattr(envoy, step["side"])
    whole = io[0] if isinstance(io, tuple) else io
    is_flat = whole.ndim == 2  # OPT's MLP works on [row·pos d_model]
    shaped = whole.reshape(*step["shape"], whole.shape[-1]) if is_flat else whole
    parts = split_heads(step["cut"], shaped)
    value = parts[0]
    if step["enter"]:
        value = residual.to(value)
    if step["join"] is not None:
        value = torch.cat([value, unpack_tensor(step["join"]).to(value)])
    for edit in step["edits"]:
        value = apply_edit(edit, value)
    if step["middle"]:  # edits of resid_mid change attn_out by what they add
        resid_mid = value + entered[step["layer"]]
        edited = resid_mid
        for edit in step["middle"]:
            edited = apply_edit(edit, edited)
        value = value + (edited - resid_mid)
    if step["keep"]:
        entered[step["layer"]] = value
    if step["read"] is not None:
        answer["seen"][step["read"]] = value.detach().contiguous().cpu()
    if value is not parts[0]:
        merged = merge_heads(step["cut"], value, parts)
        if is_flat:
            merged = merged.flatten(0, 1)
        setattr(envoy, step["side"], (merged, *io[1:]) if isinstance(io, tuple) else merged)


def resolve_first(net: Any, paths: list[str]) -> Any:
    """Return the traced module or operation at the first of these paths that exists."""
    for path in paths[:-1]:
        before, _, name = path.rpartition(".")
        if hasattr(resolve(net, before), name):
            return resolve(net, path)
    return resolve(net, paths[-1])


def apply_edit(edit: dict[str, Any], activation: Any) -> Any:
    """Return an activation with one edit applied, as `discovery.interventions.Edit` does it."""
    value = unpack_tensor(edit["value"])
    value = (value if edit["index"] is None else value[edit["index"]]).to(activation)
    if edit["operation"] == "add":
        value = activation + value
    elif edit["operation"] == "scale":
        value = activation * value
    else:
        value = value.expand_as(activation)
    where = edit["where"]
    if where is None:
        return value
    return torch.where(where.to(activation.device).unsqueeze(-1), value, activation)


def split_heads(cut: Any, whole: Any) -> list[Any]:
    """Split what a module reads or writes into heads, as `HeadLayout.split` does it."""
    if cut is None:
        return [whole]
    if cut["ends"] is None and not cut["by_head"]:
        return [whole.unflatten(-1, (-1, cut["d_head"]))]
    if cut["by_head"]:
        parts = list(whole.unflatten(-1, (-1, 3, cut["d_head"])).unbind(-2))
    else:
        slices = torch.tensor_split(whole, cut["ends"], -1)
        parts = [part.reshape(*part.shape[:-1], -1, cut["d_head"]) for part in slices]
    return [parts[cut["slot"]], *parts]


def merge_heads(cut: Any, value: Any, parts: list[Any]) -> Any:
    """Return what the module must hold so that the site has this value."""
    if cut is None:
        return value
    if len(parts) == 1:
        return value.flatten(-2)
    merged = [value if slot == cut["slot"] else old for slot, old in enumerate(parts[1:])]
    if cut["by_head"]:
        return torch.stack(merged, -2).flatten(-3)
    return torch.cat([part.flatten(-2) for part in merged], -1)
