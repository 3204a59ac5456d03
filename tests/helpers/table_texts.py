"""Branch tables from texts, their texts, and texts that keep the rules."""

from hypothesis import strategies as st

from dqar_fx import Action, BranchTable

NUMBER = {action.letter: action.value for action in Action}


def table_of(*columns, max_age=None):
    """A table of one text per site."""
    actions = [[NUMBER[letter] for letter in step] for step in zip(*columns, strict=True)]
    return BranchTable(actions, tuple(f"site_{i}" for i in range(len(columns))), max_age)


def texts_of(table):
    """One text per site."""
    return ["".join(Action(a).letter for a in column) for column in table.actions.T]


@st.composite
def valid_columns(draw):
    """Texts of one length that keep the rules: C, or S followed by reuses among computes."""
    length = draw(st.integers(1, 12))
    return [draw(valid_column(length)) for _ in range(draw(st.integers(1, 4)))]


def valid_column(length):
    return st.text("CSR", min_size=length, max_size=length).map(repaired)


def repaired(text):
    """A text with reuses of nothing and stores for nobody made computations."""
    letters, source = list(text), None
    for step, letter in enumerate(text):
        if letter == "R" and source is None:
            letters[step] = "C"
        source = step if letter == "S" else source
    for step, letter in enumerate(letters):
        later = "".join(letters[step + 1 :]).split("S", 1)[0]
        if letter == "S" and "R" not in later:
            letters[step] = "C"
    return "".join(letters)
