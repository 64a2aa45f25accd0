"""The verbs of the command line, one a file. They read options, call `pipeline`, and print; they compute nothing."""
