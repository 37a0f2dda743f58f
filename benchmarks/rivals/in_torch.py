"""What torch brings along: DistributedDataParallel, and PostLocalSGDOptimizer."""

from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.optim import PostLocalSGDOptimizer
from torch.nn.parallel import DistributedDataParallel

from benchmarks.rivals.trainer import TAU, Model, Rival, Trainer, sgd, stepping
from dist_lookahead import local_sgd


def _ddp(model: Model) -> Trainer:
    wrapped, optimizer = DistributedDataParallel(model), sgd(model)

    def local() -> None:
        with wrapped.no_sync():
            wrapped().backward()
        optimizer.step()

    def sync() -> None:
        wrapped().backward()
        optimizer.step()

    return Trainer(sync=sync, local=local, prepare=model.clear_gradients)


def _post_local_sgd(model: Model) -> Trainer:
    # It counts from 0, and averages where the count is a multiple of the period: shifted by one, after every TAU steps.
    averager = PeriodicModelAverager(period=TAU, warmup_steps=TAU - 1)
    return stepping(model, PostLocalSGDOptimizer(sgd(model), averager).step)


RIVALS = [
    Rival(
        name="torch DDP",
        module="torch",
        build=_ddp,
        levels=lambda: local_sgd(tau=TAU),
        ours="local_sgd",
        in_backward=True,
    ),
    Rival(
        name="torch PostLocalSGD",
        module="torch",
        build=_post_local_sgd,
        levels=lambda: local_sgd(tau=TAU),
        ours="local_sgd",
    ),
]
