"""Settings are checked when they are made; records say what they hold."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from nsr.rollout.engine import Completion


@pytest.mark.parametrize(
    "changes",
    [{"temperature": -0.1}, {"temperature": float("nan")}, {"max_tokens": 0}, {"max_tokens": 3}, {"min_tokens": -1}],
)
def test_settings_out_of_range_are_refused(params, changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        params(**changes)


def test_truncated_means_cut_off_at_the_length() -> None:
    def completion(reason: str) -> Completion:
        return Completion(
            token_ids=(2,), text="", log_probs_T=np.zeros(1, np.float32), entropy=None, finish_reason=reason
        )

    assert [completion(reason).truncated for reason in ("stop", "end", "length")] == [False, False, True]


def test_records_need_no_torch() -> None:
    code = "import sys, nsr.rollout.engine; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
