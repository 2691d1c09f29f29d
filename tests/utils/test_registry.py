"""The registry of named implementations."""

import pytest

from bayes_rl.errors import ConfigError
from bayes_rl.utils.registry import Registry


@pytest.fixture
def registry() -> Registry[object]:
    return Registry("model.colour")


def test_a_registered_class_is_found_by_its_name_and_not_changed(registry: Registry[type]) -> None:
    class Red:
        pass

    assert registry.register("red")(Red) is Red
    assert registry["red"] is Red
    assert "red" in registry
    assert "blue" not in registry


def test_names_are_listed_in_the_order_of_registration(registry: Registry[int]) -> None:
    for number, name in enumerate(("zinc", "amber", "mauve")):
        registry.register(name)(number)
    assert list(registry) == ["zinc", "amber", "mauve"]
    assert len(registry) == 3


def test_an_unknown_name_is_a_config_error_that_lists_all_and_the_nearest(registry: Registry[int]) -> None:
    registry.register("crimson")(1)
    registry.register("azure")(2)
    with pytest.raises(ConfigError) as caught:
        registry["crimsom"]
    assert str(caught.value) == "--model.colour: 'crimsom' is not one of crimson, azure; nearest: 'crimson'"
    assert caught.value.key == "model.colour"


def test_another_implementation_cannot_take_a_name(registry: Registry[type]) -> None:
    @registry.register("red")
    class Red:
        pass

    with pytest.raises(ValueError, match=r"model\.colour 'red' is registered already"):

        @registry.register("red")
        class Scarlet:
            pass

    assert registry["red"] is Red


def test_a_cell_that_runs_twice_replaces_its_first_definition(registry: Registry[type]) -> None:
    def cell() -> type:
        @registry.register("red")
        class Red:
            pass

        return Red

    first, second = cell(), cell()
    assert first is not second
    assert registry["red"] is second
