"""Networks aligned together: the objective never falls, cycles close exactly, one network keeps its order."""

from __future__ import annotations

from functools import cache
from itertools import combinations

import pytest
import torch
from torch import Tensor

from rebasin_cli.data.ranks import ALONE
from rebasin_cli.execution.subject import ModelChoice, open_subject
from rebasin_cli.execution.understanding import understand
from rebasin_cli.matching.composition import Composition
from rebasin_cli.matching.polish import Settings
from rebasin_cli.matching.result import MatchResult
from rebasin_cli.matching.search import search
from rebasin_cli.merging.cycle_consistent import cycle_consistent
from rebasin_cli.merging.joint import Joint, Mean, Tensors, settle
from rebasin_cli.merging.joint_annealing import anneal_jointly
from rebasin_cli.merging.merge_many import merge_many
from rebasin_cli.merging.reference import cycles_through_one_order, largest_cycle, to_most_similar
from rebasin_cli.merging.shared_bases import in_one_order
from rebasin_cli.permutation import apply, random
from tests.interpolation.digits import trained
from tests.matching.test_composition import Attending

CPU = torch.device("cpu")


@cache
def digits_joint(count: int = 4) -> Joint:
    choice = ModelChoice("tests.interpolation.digits:plain_net", inputs=("2,1,8,8",))
    networks = [dict(trained("plain", seed).state_dict()) for seed in range(count)]
    return joint_of(choice, networks)


@cache
def attending_joint(count: int = 4, noise: float = 0.1) -> Joint:
    """Permuted, noised copies of a network with nested groups."""
    choice = ModelChoice("tests.matching.test_composition:Attending", inputs=("2,5,6",))
    spec = understand(open_subject(choice), choice).spec
    torch.manual_seed(0)
    original = {key: value.detach() for key, value in Attending().state_dict().items()}
    networks = []
    for number in range(count):
        noised = {key: value + noise * value.std() * torch.randn_like(value) for key, value in original.items()}
        networks.append(apply(spec, random(spec, number), noised))
    return joint_of(choice, networks)


def joint_of(choice: ModelChoice, networks: list[dict[str, Tensor]]) -> Joint:
    subject = open_subject(choice)
    spec = understand(subject, choice).spec
    composition = Composition(spec, {key: subject.shapes[key] for key in subject.parameters})
    counts = (1,) * len(networks)
    return Joint(spec, subject.parameters, subject.ties, tuple(networks), counts, composition)


def descents(joint: Joint) -> object:
    def run(a: Tensors, b: Tensors, local: bool) -> MatchResult:
        starts = ("identity",) if local else None
        return search(joint.spec, a, b, parameters=joint.parameters, effort="fast", starts=starts)

    return run


@pytest.mark.parametrize("make", [digits_joint, attending_joint])
def test_permutations_along_every_cycle_are_the_identity_exactly(make: object) -> None:
    joint: Joint = make()  # type: ignore[operator]
    run = descents(joint)
    placed = cycle_consistent(joint, [0, 1, 2, 3], run, ALONE, seed=0, effort="fast", time_limit=None, device=CPU)  # type: ignore[arg-type]
    assert cycles_through_one_order(placed, joint.composition) == 0
    between = {
        (a, b): joint.composition.composed(placed[b], joint.composition.inverted(placed[a]))
        for a, b in combinations(range(4), 2)
    }
    for a, b, c in combinations(range(4), 3):
        network = joint.networks[c]
        around = apply(joint.spec, between[a, b], apply(joint.spec, between[b, c], network))
        back = apply(joint.spec, joint.composition.inverted(between[a, c]), around)
        assert all(torch.equal(value, network[key]) for key, value in back.items())


def test_an_open_cycle_is_measured() -> None:
    joint = attending_joint()
    by_pair = {pair: random(joint.spec, number) for number, pair in enumerate(combinations(range(3), 2))}
    assert largest_cycle(by_pair, joint.composition, 3) > 0


def test_the_order_of_one_network_can_be_held_without_a_change_of_the_objective() -> None:
    joint = attending_joint()
    placed = [random(joint.spec, 10 + number) for number in range(4)]
    held = joint.held_still(placed, 2)
    assert joint.composition.moved(held[2]) == 0
    assert joint.value(held) == pytest.approx(joint.value(placed), rel=1e-9)


def test_rounds_never_lower_the_objective_and_end_where_no_network_moves() -> None:
    joint = digits_joint()
    placed = [random(joint.spec, number) for number in range(4)]
    run, before = descents(joint), joint.value(placed)
    settle(joint, placed, run, seed=None, local=True)  # type: ignore[arg-type]
    after = joint.value(placed)
    assert after > before
    assert settle(joint, placed, run, seed=5, local=True) == 1  # type: ignore[arg-type]
    assert joint.value(placed) == after


def test_joint_annealing_ends_above_merge_many_on_trained_networks() -> None:
    joint = digits_joint()
    run = descents(joint)
    turns = joint.value(merge_many(joint, run, seed=0))  # type: ignore[arg-type]
    placed = anneal_jointly(joint, 0, Settings(), sweeps=12, device=CPU)
    assert joint.composition.moved(placed[0]) == 0
    settle(joint, placed, run, seed=None, local=True)  # type: ignore[arg-type]
    assert joint.value(placed) > turns


@pytest.mark.parametrize("anchor", [0, 3])
def test_joint_annealing_recovers_copies_with_nested_groups(anchor: int) -> None:
    joint = attending_joint()
    placed = anneal_jointly(joint, anchor, Settings(), sweeps=25, device=CPU)
    settle(joint, placed, descents(joint), seed=None, local=True)  # type: ignore[arg-type]
    back = joint.composition.inverted(random(joint.spec, anchor))
    for number in range(4):
        planted = joint.composition.inverted(random(joint.spec, number))
        wanted = joint.composition.composed(planted, joint.composition.inverted(back))
        assert all(torch.equal(wanted[name], perm) for name, perm in placed[number].items())


def test_all_pairs_choose_the_network_in_the_middle() -> None:
    joint = digits_joint(3)
    middle = Mean(joint.networks)
    networks = [*map(dict, joint.networks), {key: middle[key] for key in joint.networks[0]}]
    choice = ModelChoice("tests.interpolation.digits:plain_net", inputs=("2,1,8,8",))
    found = joint_of(choice, networks)
    run = descents(found)
    chosen = to_most_similar(found, lambda a, b: run(networks[a], networks[b], False), ALONE)  # type: ignore[operator]
    assert chosen.reference == 3


def test_networks_trained_apart_share_no_order_and_noised_ones_do() -> None:
    joint = digits_joint()
    a, b = joint.networks[:2]
    assert not in_one_order(joint.spec, a, b, joint.parameters, CPU)
    noised = {key: value + 0.05 * value.std() * torch.randn_like(value) for key, value in a.items()}
    assert in_one_order(joint.spec, a, noised, joint.parameters, CPU)
    swapped = {key: perm.clone() for key, perm in random(joint.spec, 0).items()}
    first, *others = list(swapped)
    swapped |= {name: torch.arange(len(swapped[name])) for name in others}
    swapped[first] = torch.arange(len(swapped[first]))
    swapped[first][:2] = torch.tensor([1, 0])
    assert not in_one_order(joint.spec, a, apply(joint.spec, swapped, noised), joint.parameters, CPU)
