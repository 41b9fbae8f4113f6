"""Run in each of two processes: DistributedDataParallel leaves layers with a spectral norm with the same bits."""

import os

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.parametrize.test_in_torch import network


def check(*, broadcast_buffers: bool) -> None:
    model = network()
    rank = dist.get_rank()
    if rank == 1:  # DistributedDataParallel gives it the weights of the first
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
    parallel = DistributedDataParallel(model, broadcast_buffers=broadcast_buffers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(4):
        optimizer.zero_grad()
        parallel(torch.randn(2, 3, 8, 8, generator=generator)).square().sum().backward()
        optimizer.step()
    model.eval()
    state = [*model.state_dict().values(), model[0].weight.detach(), model[2].weight.detach()]
    for tensor in state:
        gathered = [torch.empty_like(tensor) for _ in range(2)]
        dist.all_gather(gathered, tensor.contiguous())
        assert torch.equal(*gathered), f"broadcast_buffers={broadcast_buffers}"


if __name__ == "__main__":
    dist.init_process_group("gloo")
    for broadcast in (True, False):
        check(broadcast_buffers=broadcast)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # threads of torch that still run at the interpreter's end would abort the process
