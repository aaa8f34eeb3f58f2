"""Measurements: each is a function that returns a frozen result with its cost.

- `patching` sweeps a site, patches single nodes, and patches the paths between nodes.
- `ablation` replaces sets of nodes, and `controls` does so with random sets to compare with.
- `behaviour` asks whether the model does the task, and `prompt_run` shows what it does on a prompt.
- `features` measures the features of sparse autoencoders.
- `statistics` gives all of them intervals and tests.
"""
