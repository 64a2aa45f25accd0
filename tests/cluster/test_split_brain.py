"""A node is cut off from the network while its job lives on there, and Slurm starts the job again elsewhere: the new
side goes on from the last checkpoint, the old one sees that it was replaced and stops."""

from __future__ import annotations

import json
import time

import pytest

from tests.fault_table import Row

from .conftest import EVERY, ONE, Job, Lab
from .disturbed import begun, requeued, same_end

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]

# so slow that the old side is not done before Slurm has given its node up (SlurmdTimeout)
SLOW = ("diffusion.training.validate_every=1",)


def test_a_node_cut_off(lab: Lab, whole: Job, row: Row) -> None:
    """Both ranks are on the node: they notice nothing of the cut, and reach the same files as the new side."""
    row.fault = "node cut off, its job queued again"
    row.how = "the node's network cut while its ranks train on; they find their lease taken over and end"
    job = begun(lab, whole, "cut-off", ONE, SLOW)
    node = job.facts()["NodeList"]
    lab.slurmlab("partition", node)
    cut = time.time()
    try:
        job.wait(lambda: "restart 1" in job.log, "its start on another node")
        again = time.time()
        assert job.facts()["NodeList"] != node
        requeued(job)
    finally:
        lab.slurmlab("heal", node)
    spool = min(job.folder.glob("runs/artifacts/diffusion/*/work/spool/*.jsonl"))  # of the first token
    first = [json.loads(line)["ts_ms"] / 1000 for line in spool.read_text().splitlines() if line.endswith("}")]
    print(f"cut-off: started again {again - cut:.0f} s after the cut, the old side wrote for {max(first) - cut:.0f} s")
    assert max(first) > again, "the old side was over before the new one began: nothing to ignore"
    assert job.log.count("taken over") == 1 and "Traceback" not in job.log
    same_end(job, whole, "diffusion", EVERY, row, cut)
    lab.wait_idle(node)
