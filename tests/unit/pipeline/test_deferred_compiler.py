"""torch's compiler is not imported by what only marks functions for it, and is there as ever for who asks for it."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest

BEFORE = """
import sys
import pipeline
import torch
from models.registry import outline

network = torch.nn.Linear(4, 4)
optimizer = torch.optim.AdamW(network.parameters())
optimizer.zero_grad()
network(torch.ones(2, 4)).sum().backward()
optimizer.step()
for more in ({}, {"rope": True, "qk_norm": True}):
    outline("backbones", {"kind": "dit", "width": 16, "depth": 1, "heads": 2, "patch": 2, **more}, channels=2, size=4)
few = {"width": 8, "multipliers": [1, 2], "groups": 4}
outline("backbones", {"kind": "unet", "attention": [False, True], "head_width": 8, **few}, channels=2, size=4)
outline("autoencoders", {"kind": "kl", **few}, channels=3)
assert type(sys.modules["torch._dynamo"]).__name__ == "_Compiler"
assert not {"torch._inductor", "sympy"} & set(sys.modules)
"""
AFTER = {
    "compile": """
        optimizer.register_step_pre_hook(lambda *_: None)

        @torch.compile(backend="eager")
        def step(x):
            y = network(x).sum()
            optimizer.zero_grad()  # called before, and not to be traced
            return y + 1

        assert step(torch.ones(2, 4)).shape == ()
        from torch._dynamo.utils import counters
        assert counters["graph_break"] and counters["stats"]["unique_graphs"] >= 1, counters
    """,
    "submodule": """
        import torch._dynamo.config as config
        assert config is sys.modules["torch._dynamo"].config and torch._dynamo.config is config
    """,
    "part": """
        from torch._dynamo.utils import counters
        import torch._dynamo.utils
        assert counters is torch._dynamo.utils.counters and torch._dynamo.utils.__spec__.origin

        class Network(torch.nn.Module):
            def forward(self, x): return x + 1

        network = Network()
        network.compile(backend="eager")
        network(torch.ones(2))
        assert counters["stats"]["unique_graphs"] == 1, counters
    """,
    "mark": """
        @torch.compiler.disable
        def plain(x): return x + 1
        @torch._dynamo.disable(recursive=False)
        def other(x): return x + 1
        assert plain(1) == 2 == other(1)
        import torch._dynamo
        torch._dynamo.config.suppress_errors = True
        from torch._dynamo import config
        assert config.suppress_errors
    """,
}


REAL = 'assert type(sys.modules["torch._dynamo"]).__name__ == "module"'
EACH = """
import json, os, traceback
failed = {}
for name, code in json.load(sys.stdin).items():
    sys.stderr.flush()
    if os.fork() == 0:  # each begins where nothing has been asked for
        try:
            exec(code, globals())
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    failed[name] = os.wait()[1]
print(json.dumps(failed))
"""


@pytest.fixture(scope="module")
def ends() -> tuple[dict[str, int], str]:
    """What each case ended with, and what they all said."""
    cases = {name: textwrap.dedent(code) + REAL for name, code in AFTER.items()}
    command = [sys.executable, "-c", BEFORE + EACH]
    done = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout), done.stderr


@pytest.mark.parametrize("what", AFTER)
def test_not_imported_by_an_optimizer_and_there_for_who_asks(ends: tuple[dict[str, int], str], what: str) -> None:
    failed, said = ends
    assert failed[what] == 0, said[-3000:]
