"""A plan in a few printed lines: what each format holds, what is predicted, and the solver's proof."""

from lowbit_vit.schema.allocation import PlanFile

_MIB = 2**20


def plan_lines(plan: PlanFile) -> list[str]:
    """For a terminal."""
    by_format: dict[str, list[str]] = {}
    for entry in plan.entries:
        by_format.setdefault(entry.weights.name, []).append(entry.unit.removeprefix("blocks."))
    lines = [f"{plan.name}: within {plan.budget}" if plan.budget else plan.name]
    lines += [f"  {name}: {' '.join(units)}" for name, units in sorted(by_format.items())]
    if plan.predicted is not None:
        predicted = plan.predicted
        ms = "" if predicted.ms is None else f", {predicted.ms:.3f} ms"
        size = predicted.weight_bytes / _MIB
        low_high = predicted.flips_interval
        within = "" if low_high is None else f" ({low_high[0]:.3g} to {low_high[1]:.3g})"
        flips = f"{predicted.flips_per_1000:.3g}{within} flips in 1,000 images"
        lines.append(f"  predicted: {size:.4f} MiB, KL {predicted.kl:.4g} nats, {flips}{ms}")
    if plan.optimum is not None:
        lines.append(
            f"  least {plan.optimum.minimized} {plan.optimum.value:.6g}, bound {plan.optimum.bound:.6g}, gap {plan.optimum.gap:.2g}"
        )
    return lines
