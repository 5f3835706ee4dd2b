from __future__ import annotations

import inspect

import pytest

pytestmark = [pytest.mark.nnunet, pytest.mark.filterwarnings("default")]


def test_every_trainer_of_nnunet_keeps_its_name_and_signature() -> None:
    import importlib
    import pkgutil

    import nnunetv2.training.nnUNetTrainer
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunet_ext.trainers.extend import POWERS, extend

    home = nnunetv2.training.nnUNetTrainer.__path__
    found = {nnUNetTrainer}
    for module in pkgutil.walk_packages(home, "nnunetv2.training.nnUNetTrainer."):
        if not module.ispkg:
            found |= {
                thing
                for thing in vars(importlib.import_module(module.name)).values()
                if inspect.isclass(thing) and issubclass(thing, nnUNetTrainer)
            }
    assert len(found) > 40
    for trainer in found:
        extended = extend(trainer)
        assert (extended.__name__, extended.__mro__[: len(POWERS)].count(trainer)) == (trainer.__name__, 0)
        assert issubclass(extended, trainer)
        assert all(issubclass(extended, power) for power in POWERS)
        assert inspect.signature(extended.__init__) == inspect.signature(trainer.__init__)


def test_extending_twice_adds_nothing_and_a_class_with_some_powers_gets_the_rest() -> None:
    from nnunet_ext.trainers.classes import nnUNetTrainerEMAStop, nnUNetTrainerNNX
    from nnunet_ext.trainers.extend import POWERS, extend

    assert extend(nnUNetTrainerNNX) is nnUNetTrainerNNX
    both = extend(nnUNetTrainerEMAStop)
    assert all(issubclass(both, power) for power in POWERS)
    assert extend(both) is both


def test_a_class_that_had_early_stopping_only_stops_and_saves_like_the_others(bench) -> None:
    from nnunet_ext.trainers.classes import nnUNetTrainerEMAStop
    from nnunet_ext.trainers.extend import extend

    trainer, _ = bench.train(extend(nnUNetTrainerEMAStop), epochs=9, target=1e-9, min_epochs=2)
    assert (trainer.current_epoch, bench.facts("final").current_epoch) == (2, 2)


def test_no_power_hides_a_private_name_of_another() -> None:
    from nnunet_ext.trainers.extend import POWERS

    owners: dict[str, str] = {}
    for cls in {cls for power in POWERS for cls in power.__mro__[:-1]}:
        for name in vars(cls):
            if name.startswith("_nnx"):
                assert owners.setdefault(name, cls.__name__) == cls.__name__


def test_no_power_has_a_constructor() -> None:
    from nnunet_ext.trainers.extend import POWERS

    for power in POWERS:
        assert not [cls for cls in power.__mro__[:-1] if "__init__" in vars(cls)]
