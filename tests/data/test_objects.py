"""A catalogue from Python objects."""

from calrec_lite.data.objects import catalogue_of


def test_items_written_otherwise_stay_apart() -> None:
    titles = {
        "a": "10²",
        "b": "102",
        "c": "Tea\u200b",
        "d": " Tea",
        "e": "Java List<String>",
        "f": "Java List<Integer>",
    }
    catalogue = catalogue_of({"item": item, "title": title, "price": None} for item, title in titles.items())
    assert sorted(catalogue.titles) == ["102", "10²", "Java List<Integer>", "Java List<String>", "Tea"]
    assert catalogue.aliases["c"] == catalogue.aliases["d"]
    assert catalogue.fields[catalogue.aliases["a"]] == {"Title": "10²"}
