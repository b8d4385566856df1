"""README.md's Python examples run, one after the other, and say what their comments say."""

import re
from pathlib import Path

import numpy as np

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_examples_run(capsys):
    examples = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.M | re.S)
    assert len(examples) == 3
    names = {}
    for example in examples:
        exec(compile(example, str(README), "exec"), names)
    assert capsys.readouterr().out.startswith("forward_")
    assert names["out"].shape == (2, 512, 16, 128)
    # decode among the latents is the last position of prefill
    np.testing.assert_allclose(names["step"], names["out"][:, -1:], rtol=0, atol=1e-4)
