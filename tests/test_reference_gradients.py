"""The gradients that kernels are judged by: slopes of the reference itself."""

import cases
import numpy as np
import pytest
import reference
from reference_gradients import gradients

STEP = 1e-5
CASES = [case for case in cases.SMALL if case.dtype == "float64" and case.options.get("normalize_output", True)]
CASES += [case for case in cases.EDGE if case.id in ("bias-4x1x1", "bias-float64-with-float64", "memory-gaps-float64-7")]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_slopes_of_the_reference(case):
    call = case.arrays()
    if "bias" in call:
        call["bias"] = call["bias"].astype(np.float64)
    rng = np.random.default_rng(1)
    out, lse = reference.flash_attention(**call, return_lse=True)
    dout, dlse = rng.standard_normal(out.shape), np.where(np.isfinite(lse), rng.standard_normal(lse.shape), 0)

    def loss(**changed):
        out, lse = reference.flash_attention(**{**call, **changed}, return_lse=True)
        return (dout * out).sum() + (dlse * np.where(np.isfinite(lse), lse, 0)).sum()

    for name, (gradient, unit) in gradients(call, dout, dlse).items():
        x, direction = call[name].astype(np.float64), rng.standard_normal(call[name].shape)
        slope = (loss(**{name: x + STEP * direction}) - loss(**{name: x - STEP * direction})) / (2 * STEP)
        size = np.linalg.norm(gradient)
        assert abs(slope - (gradient * direction).sum()) <= 1e-6 * (1 + size), name
        assert (unit > 0).all()
        assert np.isfinite(gradient).all()
