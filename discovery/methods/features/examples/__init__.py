"""Where features fire in a text: max-activating examples and how often features fire.

`feature_examples.feature_examples` is the entry point. `documents` yields the documents of a text,
`reader` runs them through the model and the SAE, `sampling` keeps the contexts that matter,
`dashboards` makes them readable, and `disk_cache` keeps answers on disk.
"""
