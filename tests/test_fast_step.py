"""Fast steps of several updates, on a game that is computed by hand: min over x, max over y of x y."""

from collections.abc import Sequence
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from dist_lookahead import DistributedLookahead, lookahead
from dist_lookahead.tasks import Update
from dist_lookahead.train.fast_step import play

LR = 0.1


class Player(nn.Module):
    def __init__(self, start: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([start], dtype=torch.float64))


class Bilinear(nn.Module):
    """x descends on x y, and y on - x y."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.y = Player(1.0), Player(2.0)

    def loss_of_x(self) -> Tensor:
        return (self.x.weight * self.y.weight).sum()

    def loss_of_y(self) -> Tensor:
        return -self.loss_of_x()

    @property
    def place(self) -> tuple[float, float]:
        return self.x.weight.item(), self.y.weight.item()


def fast_step(game: Bilinear, updates: Sequence[Update], optimizer: torch.optim.Optimizer) -> Tensor:
    """As an agent takes it."""
    inner = optimizer.inner if isinstance(optimizer, DistributedLookahead) else optimizer
    losses: list[Tensor] = []

    def closure() -> float:
        losses.append(play(updates, game, inner, nullcontext))
        return losses[-1].item()

    optimizer.step(closure)
    return losses[-1]


def alternating(game: Bilinear, y_steps: int = 1) -> list[Update]:
    return [*[Update({"y": game.loss_of_y})] * y_steps, Update({"x": game.loss_of_x})]


def extragradient(game: Bilinear) -> list[Update]:
    losses = {"x": game.loss_of_x, "y": game.loss_of_y}
    return [Update(losses, extrapolation=losses)]


@pytest.mark.parametrize("y_steps", [1, 3])
def test_players_that_take_turns_answer_to_each_other(y_steps: int) -> None:
    """The last player must see the moves before its own, and be moved by its own loss alone."""
    game = Bilinear()
    optimizer = torch.optim.SGD(game.parameters(), lr=LR)
    x, y = game.place
    for _ in range(5):
        loss = fast_step(game, alternating(game, y_steps), optimizer)
        before = y
        for _ in range(y_steps):
            before, y = y, y + LR * x
        assert loss.item() == pytest.approx(-x * before + x * y, rel=1e-12), "each player's loss before its last update"
        x -= LR * y
        assert game.place == pytest.approx((x, y), rel=1e-12)


def test_an_extragradient_step_uses_the_gradients_that_lie_one_step_ahead() -> None:
    """And so nears the equilibrium, from which simultaneous steps drift away."""
    game = Bilinear()
    optimizer = torch.optim.SGD(game.parameters(), lr=LR)
    x, y = game.place
    for _ in range(5):
        before = x**2 + y**2
        fast_step(game, extragradient(game), optimizer)
        there = x - LR * y, y + LR * x
        x, y = x - LR * there[1], y + LR * there[0]
        assert game.place == pytest.approx((x, y), rel=1e-12)
        assert x**2 + y**2 < before


def test_each_player_has_the_optimizer_state_of_its_own_updates() -> None:
    """Adam's bias correction counts a player's updates; a zero gradient in place of none would count others' too."""
    game = Bilinear()
    optimizer = torch.optim.Adam(game.parameters(), lr=LR)
    for _ in range(4):
        fast_step(game, alternating(game, y_steps=3), optimizer)
    assert [optimizer.state[p]["step"].item() for p in (game.x.weight, game.y.weight)] == [4, 12]


@pytest.mark.parametrize("updates", [alternating, lambda game: alternating(game, 3), extragradient])
def test_levels_count_fast_steps_and_pull_all_players_from_where_they_began(updates) -> None:
    """Slow weights noted after the first players' updates, or a clock that counts updates, would end elsewhere."""
    game, plain = Bilinear(), Bilinear()
    optimizer = DistributedLookahead(torch.optim.SGD(game.parameters(), lr=LR), lookahead(tau=3, alpha=0.25))
    alone = torch.optim.SGD(plain.parameters(), lr=LR)
    slow = plain.place
    for step in range(1, 8):
        fast_step(game, updates(game), optimizer)
        fast_step(plain, updates(plain), alone)
        if step % 3 == 0:
            slow = tuple(z + 0.25 * (fast - z) for z, fast in zip(slow, plain.place, strict=True))
            with torch.no_grad():
                plain.x.weight.fill_(slow[0])
                plain.y.weight.fill_(slow[1])
        assert game.place == pytest.approx(plain.place, rel=1e-12), step
