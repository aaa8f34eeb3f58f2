"""Tools that find a circuit or evaluate one."""
