"""The command line: options in, results rendered, exit codes out."""
