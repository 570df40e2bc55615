import torch
from torch import nn

from lowbit_vit.recipe.train import WeightAverage


def test_the_average_is_the_weighted_sum_of_all_values_since_the_start() -> None:
    decay, steps = 0.6, 30
    values = torch.randn(steps + 1, 3, dtype=torch.float64)
    parameters = [nn.Parameter(values[0].clone()), nn.Parameter(2 * values[0][:, None].clone())]
    average = WeightAverage(parameters, decay)
    for value in values[1:]:
        with torch.no_grad():
            parameters[0].copy_(value)
            parameters[1].copy_(2 * value[:, None])
        average.update()
    decays = torch.tensor([min(decay, (1 + step) / (10 + step)) for step in range(1, steps + 1)], dtype=torch.float64)
    # w_t is taken in with 1 - d_t and kept with every d after it; the start is kept with all of them.
    kept = torch.cat([decays.flip(0).cumprod(0).flip(0), torch.ones(1, dtype=torch.float64)])
    weights = torch.cat([kept[:1], (1 - decays) * kept[1:]])
    average.store()
    torch.testing.assert_close(weights.sum(), torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(parameters[0].detach(), weights @ values)
    torch.testing.assert_close(parameters[1].detach()[:, 0], 2 * weights @ values)
