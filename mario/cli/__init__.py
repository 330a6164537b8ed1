"""The command line: thin; every command is one job."""
