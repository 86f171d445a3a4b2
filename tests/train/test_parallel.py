"""Two gloo processes give the gradient of one process on the same global batch."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from shoestring.train.objective import next_token
from shoestring.train.resident import ResidentEngine
from tests.train import tiny

WORKER = """
import sys
import torch, torch.distributed as dist
from safetensors.torch import save_file
from shoestring.train import parallel
from shoestring.train.objective import next_token
from shoestring.train.resident import ResidentEngine
from tests.train import tiny

torch.set_num_threads(1)
rank, port, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
parallel.BUCKET_NUMBERS = 5000  # several buckets
model = tiny.model()
whole = tiny.batch(4, ignored=0.5)
loss = ResidentEngine.around(model, next_token).forward_backward([tiny.rows_of(whole, rank, 4).__class__(
    *(t[rank::2] for t in (whole.tokens_BT, whole.labels_BT, whole.positions_BT, whole.segments_BT)))])
tensors = {name: p.grad for name, p in model.named_parameters()}
tensors["loss"] = torch.tensor([loss.mean, loss.count], dtype=torch.float64)
save_file(tensors, f"{out}/{rank}.safetensors")
dist.destroy_process_group()
"""


def test_two_processes_give_the_gradient_of_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}", "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", WORKER]
    workers = [
        subprocess.Popen([*arguments, str(rank), str(port), str(tmp_path)], env=env) for rank in (0, 1)
    ]
    assert [worker.wait(240) for worker in workers] == [0, 0]

    model = tiny.model()
    expected = ResidentEngine.around(model, next_token).forward_backward([tiny.batch(4, ignored=0.5)])
    for rank in (0, 1):
        found = load_file(tmp_path / f"{rank}.safetensors")
        mean, count = found.pop("loss").tolist()
        assert count == expected.count and abs(mean - expected.mean) < 1e-6
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(found[name], parameter.grad)
