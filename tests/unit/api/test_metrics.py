from __future__ import annotations

from skerry_server.api.metrics import Metric, RequestCounter, render


def test_the_text_format_escapes_label_values() -> None:
    metric = Metric("m", "gauge", "Help.", {(("a", 'x"\\\n'),): 2.0, (): 0.5})
    assert render([metric]) == '# HELP m Help.\n# TYPE m gauge\nm{a="x\\"\\\\\\n"} 2\nm 0.5\n'


def test_requests_are_counted_by_template() -> None:
    counter = RequestCounter()
    counter.count("GET", "/v1/devices/{device_id}", 200)
    counter.count("GET", "/v1/devices/{device_id}", 200)
    counter.count("GET", "/v1/devices/{device_id}", 404)
    assert list(counter.metric().samples.values()) == [2.0, 1.0]
