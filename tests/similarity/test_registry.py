import functools
import sys

import pytest

from saejax.errors import InputError
from saejax.similarity import MEASURES, find_measure
from saejax.similarity.registry import WITH_OPTIONS


def test_measures_are_found_by_name_and_with_options() -> None:
    for name, measure in MEASURES.items():
        assert measure.name == name
        assert find_measure(name) is measure
    assert find_measure("svcca:components=3").name == "svcca:components=3"
    assert find_measure("svcca:variant=k1").name == "svcca:variant=k1"
    assert find_measure("knn_jaccard:k=5") is find_measure("knn_jaccard", k=5)


def test_an_option_goes_to_the_measures_that_have_it() -> None:
    assert find_measure("rsa", rank_bits=16) is not MEASURES["rsa"]
    assert find_measure("svcca", rank_bits=16) is MEASURES["svcca"]
    assert find_measure("rsa", rank_bits=None) is MEASURES["rsa"]


def test_a_measure_made_without_options_is_the_registered_one() -> None:
    for name, make in WITH_OPTIONS.items():
        assert make().name == name


@pytest.mark.parametrize("name", ["uniformity", "magnitude", "concentricity", "imd", "IMD"])
def test_what_no_repairing_changes_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(InputError, match=f"measure '{name}' describes the rows of each side on their own, so no re-pa"):
        find_measure(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ckk", "measure 'ckk' is unknown; choose among svcca, "),
        ("svcca:k=3", "measure 'svcca:k=3' has no option 'k=3'; its options are components, variant, given as"),
        ("cka:k=3", "measure 'cka:k=3' has no option 'k=3'; its options are none, given as option=value"),
        ("svcca:components", "measure 'svcca:components' has no option 'components'; its options are"),
        ("rsa:rank_bits=16", "measure 'rsa:rank_bits=16' has no option 'rank_bits=16'; its options are none"),
        ("rsa_cosine:inner=euclidean", "measure 'rsa_cosine:inner=euclidean' has no option"),
        ("svcca:components=0", "svcca: components 0 must be at least 1"),
        ("svcca:components=x", "measure 'svcca:components=x': components 'x' must be a whole number"),
    ],
)
def test_unknown_names_and_options_are_named(name: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        find_measure(name)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("name", MEASURES)
def test_the_docstring_of_a_measure_states_what_its_user_must_know(name: str) -> None:
    measure = MEASURES[name]
    define = measure.reference.func if isinstance(measure.reference, functools.partial) else measure.reference
    said = sys.modules[define.__module__].__doc__ or ""
    assert f"Tolerance: {measure.tolerance:.0e}.".replace("e-0", "e-") in said
    assert f"{'larger' if measure.larger_is_more_similar else 'smaller'} is more similar" in said.lower()
    for part in ("`[n, dx]`", "`[n, dy]`", "Invarian", "Cost per permutation: ", "\nSource", name):
        assert part in said, part
