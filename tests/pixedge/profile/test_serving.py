"""The serving figures, from times that were made up and figures that were worked out by hand."""

import pytest

from pixedge.profile.questions import Asked
from pixedge.profile.serving import METRICS, serving_record


class Request:
    def __init__(self, tokens):
        self.prompt = type("Prompt", (), {"ids": (1,) * tokens})


def asked(arrived, times, tokens=10):
    return Asked(arrived, Request(tokens), "question 1", list(times))


def test_figures():
    found = serving_record([asked(10.0, (10.5, 10.6, 10.9)), asked(11.0, (12.0, 12.1, 12.2), 20)], 2)
    assert (found["completed"], found["concurrency"]) == (2, 2)
    assert found["duration"] == pytest.approx(2.2)
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (30, 6)
    assert found["request_throughput"] == pytest.approx(2 / 2.2, abs=1e-4)
    assert found["output_throughput"] == pytest.approx(6 / 2.2, abs=1e-3)
    assert found["total_token_throughput"] == pytest.approx(36 / 2.2, abs=1e-3)
    assert found["mean_ttft_ms"] == found["median_ttft_ms"] == 750
    assert found["p99_ttft_ms"] == pytest.approx(500 + 0.99 * 500)
    assert found["mean_tpot_ms"] == pytest.approx((200 + 100) / 2)
    assert found["mean_itl_ms"] == pytest.approx((100 + 300 + 100 + 100) / 4)
    assert found["median_itl_ms"] == pytest.approx(100)
    assert found["mean_e2el_ms"] == pytest.approx((900 + 1200) / 2)


def test_one_token_has_no_time_between():
    found = serving_record([asked(0.0, (0.25,))], 1)
    assert found["mean_ttft_ms"] == found["p99_e2el_ms"] == 250
    for key in ("tpot", "itl"):
        assert found[f"mean_{key}_ms"] is found[f"median_{key}_ms"] is found[f"p99_{key}_ms"] is None


def test_every_metric_is_told_in_three_ways():
    keys = serving_record([asked(0.0, (1.0, 2.0))], 1).keys()
    assert {f"{kind}_{metric}_ms" for kind in ("mean", "median", "p99") for metric in METRICS} <= keys
