#!/usr/bin/env bash
# streamlit 1.67.0: a script that `AppTest` runs takes the place of `__main__` in `sys.modules`, and stays there when the
# test is over. Processes that anything in the same process starts afterwards by "spawn" or "forkserver" (a DataLoader's
# readers, say) then run that script as they prepare themselves: they end with its NameError, and a test elsewhere fails
# that has nothing to do with a page.
# What to do: put `sys.modules["__main__"]` back after each such test.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env" && "$folder/env/bin/pip" install --quiet streamlit==1.67.0 ||
  { echo "cannot install"; exit 2; }

cat > "$folder/check.py" <<'PYTHON'
import multiprocessing
import sys

import streamlit
from streamlit.testing.v1 import AppTest


def started() -> int:
    process = multiprocessing.get_context("forkserver").Process(target=print, args=("a process says hello",))
    process.start()
    process.join()
    return process.exitcode


def page(name: str) -> None:
    import streamlit as st

    st.write(name)


if __name__ == "__main__":
    own, before = sys.modules["__main__"], started()
    shown = AppTest.from_function(page, args=("a page",)).run().markdown[0].value
    kept, after = sys.modules["__main__"] is own, started()
    sys.modules["__main__"] = own
    back = started()
    print(f"streamlit {streamlit.__version__}: shown {shown!r}; __main__ is still ours: {kept}")
    print(f"exit codes of a process: before {before}, after {after}, with __main__ put back {back}")
    if kept or (before, back) != (0, 0) or after == 0:
        sys.exit("the behaviour has changed: not what the head of this script says")
PYTHON
"$folder/env/bin/python" -W ignore "$folder/check.py" 2> "$folder/log" || { tail -n 3 "$folder/log"; exit 1; }
echo "as described"
