from visao_ray.reports.formats import estimate, number, plain


def test_estimates_are_rounded_and_undefined_ones_are_dashes():
    entry = {"value": 0.96149, "low": 0.93, "high": 0.9821, "n": 1312}
    assert estimate(entry) == {"value": "96.1\u202f%", "interval": "93.0–98.2", "n": "1,312"}
    assert estimate(entry, "area")["value"] == "0.961"
    undefined = {"value": None, "low": None, "high": None, "n": 0}
    assert estimate(undefined) == {"value": "—", "interval": "", "n": ""}
    lonely = {"value": 1.0, "low": None, "high": None, "n": 3}
    assert estimate(lonely)["interval"] == ""


def test_numbers_and_settings_read_as_people_write_them():
    assert [number(v) for v in (1234567, 0.00012, 0.98765, 41.237, 12345.6, float("nan"))] == [
        "1,234,567",
        "1.20e-04",
        "0.9877",
        "41.24",
        "12,346",
        "—",
    ]
    assert [plain(v) for v in (None, True, ["avg", "max"], {"a": 1}, 0.5, "x")] == [
        "—",
        "yes",
        "avg, max",
        "a: 1",
        "0.5",
        "x",
    ]
