"""`circuit-scout look`: what a model's parts do on a prompt or a task, one subcommand a technique.

`command` registers the subcommands, `frame` holds what they share, and every other module is one
subcommand.
"""
