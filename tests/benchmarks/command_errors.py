"""What a command says of a command line that it refuses, and the code it ends with."""

import re


def refuse(main, arguments, capsys):
    """Run a command that refuses its options; its code, and its error as one line of text."""
    try:
        code = main(arguments)
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    assert out == ""
    return code, re.sub(r"[\s│─╭╮╰╯]+", " ", err).strip()
