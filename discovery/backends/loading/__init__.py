"""How a name becomes a loaded model.

`source` finds the files; `outline` describes the model before it is loaded; `backend_choice`
chooses the backend; `huggingface` and `native` read the two formats; `description`, `checks` and
`abilities` look at the loaded module; `load` puts this together as `load_model`.
"""
