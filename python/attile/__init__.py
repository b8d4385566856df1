"""Exact attention, tile by tile, on the arrays of NumPy, torch, JAX and CuPy."""

from attile._core import __version__
from attile.backward import Gradients, flash_attention_backward
from attile.config import get_cmake_dir, get_include, show_config
from attile.flash import FlashAttentionConfig, MaskInfo, flash_attention
from attile.kvcache import flash_attention_with_kvcache
from attile.merge import merge_states
from attile.mla import FlashMLAConfig, flash_mla, mla_attention, mla_decode
from attile.mla_backward import MLAGradients, mla_attention_backward
from attile.threads import get_num_threads, set_num_threads
from attile.tuning import explain

__all__ = [
    "FlashAttentionConfig",
    "FlashMLAConfig",
    "Gradients",
    "MLAGradients",
    "MaskInfo",
    "__version__",
    "explain",
    "flash_attention",
    "flash_attention_backward",
    "flash_attention_with_kvcache",
    "flash_mla",
    "get_cmake_dir",
    "get_include",
    "get_num_threads",
    "merge_states",
    "mla_attention",
    "mla_attention_backward",
    "mla_decode",
    "set_num_threads",
    "show_config",
]
