"""Kernels that are tried before they are used."""

from __future__ import annotations

import torch

from flux_core.quant import FORMATS
from flux_core.quant.kernel_trial import kernel_error
from flux_core.quant.kernels import Float8Rows, Int8Kitchen

CPU = torch.device("cpu")


def test_a_kernel_that_gives_wrong_results_is_not_used():
    class Wrong(Float8Rows):
        def multiply(self, x, tensors, block):
            return super().multiply(x, tensors, block) * 1.5

    assert kernel_error(Float8Rows(), FORMATS["fp8_e4m3fn"], CPU, torch.float32) == ""
    reason = kernel_error(Wrong(), FORMATS["fp8_e4m3fn"], CPU, torch.float32)
    assert reason == "its result is 50% off the reference's"


def test_a_missing_library_is_a_reason_and_no_error():
    reason = kernel_error(Int8Kitchen(), FORMATS["int8"], CPU, torch.float32)
    assert reason.startswith(("ModuleNotFoundError", "RuntimeError: comfy-kitchen"))
