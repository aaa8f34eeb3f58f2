"""The tools of the server, one file for each tool, in one folder for each toolset."""
