"""Where a cell came from: the generation that first met it, and the moves that led to it.

All is read off history.csv, so it is known of every search, old ones too. The table does not name members;
the pairs of a generation are a permutation that its seed gives, so who met whom can be drawn again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import genotypes
from utils import generator

PAIRING = 0  # what search/slow_fast.py draws its pairs for
Row = Mapping[str, Any]  # of history.csv, as texts or as the numbers that were written


@dataclass(frozen=True)
class Ancestor:
    """A cell of a line, as JSON. `generation` (from 0) and `pair` are where it was first met.

    `slower` and `faster` are the cells whose pair it came from: the learner that lost and moved, and the one
    that it moved towards. Both are empty for a cell that began a line.
    """

    cell: str
    generation: int
    pair: int
    loss: str
    slower: str = ""
    faster: str = ""


def first_met(history: Sequence[Row], cell: str) -> Row | None:
    """The first comparison of a cell (as JSON), None where it was never compared."""
    return next((row for row in history if cell in (row["genotype_a"], row["genotype_b"])), None)


def line(history: Sequence[Row], cell: str, config: Mapping[str, Any]) -> list[Ancestor]:
    """The cells that led to `cell`, oldest first, itself last; only itself where its line is not known.

    Empty where it was never compared. `config`: the settings of the search.
    """
    first = first_met(history, cell)
    if first is None:
        return []
    members = _members(history, config)
    generation = int(first["generation"])
    side = "a" if first["genotype_a"] == cell else "b"
    own = next((m for m, met in members.items() if met.get(generation) == (first, side)), None)
    found = Ancestor(cell, generation, int(first["pair"]), str(first[f"loss_{side}"]))
    if own is None:
        return [found]
    ancestors: list[Ancestor] = []
    for earlier in range(generation - 1, -1, -1):
        row, side = members[own][earlier]
        if row["winner"] == "":  # both diverged and started anew
            break
        other = "b" if side == "a" else "a"
        before = row[f"genotype_{side}"]
        if before != found.cell:
            ancestors.append(replace(found, slower=before, faster=row[f"genotype_{other}"]))
        found = Ancestor(before, earlier, int(row["pair"]), str(row[f"loss_{side}"]))
    return [*reversed([*ancestors, found])]


def _members(history: Sequence[Row], config: Mapping[str, Any]) -> dict[int, dict[int, tuple[Row, str]]]:
    """The comparisons of each member, as {member: {generation: (row, side)}}.

    Empty where the table does not fit the pairs that the seed gives: a fast learner stays what it is.
    """
    size, seed = config.get("pop_size"), config.get("seed")
    if not isinstance(size, int) or not isinstance(seed, int) or config.get("strategy") == "random":
        return {}
    members: dict[int, dict[int, tuple[Row, str]]] = {member: {} for member in range(size)}
    orders: dict[int, list[int]] = {}
    for row in history:
        generation, pair = int(row["generation"]), int(row["pair"])
        if generation not in orders:
            orders[generation] = generator(seed, PAIRING, generation).permutation(size).tolist()
        for place, side in enumerate("ab"):
            if 2 * pair + place >= size:
                return {}
            members[orders[generation][2 * pair + place]][generation] = (row, side)
    for met in members.values():
        for generation, (row, side) in met.items():
            after = met.get(generation + 1)
            stays = after is None or row["winner"] != side
            if not stays and after is not None:
                stays = after[0][f"genotype_{after[1]}"] == row[f"genotype_{side}"]
            if not stays or (generation and generation - 1 not in met):
                return {}
    return members


def origin(history: Sequence[Row], cell: str, config: Mapping[str, Any]) -> str:
    """Where a cell (as JSON) came from, in words, generations counted from 1.

    E.g. "generation 8, after 3 moves", "generation 1, first population"; "last population" where it was
    never compared.
    """
    ancestors = line(history, cell, config)
    if not ancestors:
        return "last population"
    last, moves = ancestors[-1], len(ancestors) - 1
    if config.get("strategy") == "random":
        how = "drawn at random"
    elif last.generation == 0:
        how = "first population"
    elif moves:
        how = f"after {moves} move{'s' if moves > 1 else ''}"
    else:
        how = "drawn anew" if _members(history, config) else "line not known"
    return f"generation {last.generation + 1}, {how}"


def description(history: Sequence[Row], cell: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a card says of where a cell came from: in words, and its line; generations counted from 1."""
    ancestors = [asdict(one) | {"generation": one.generation + 1} for one in line(history, cell, config)]
    return {"origin": origin(history, cell, config), "line": ancestors}


def shares(ancestor: Ancestor) -> tuple[int, int, int]:
    """How many edges a moved cell has from the slower learner, else from the faster one, and from neither.

    An edge is an operation with its input, at its node.
    """
    child, slower, faster = (_nodes(cell) for cell in (ancestor.cell, ancestor.slower, ancestor.faster))
    counts = [0, 0, 0]
    for own, slow, fast in zip(child, slower, faster, strict=True):
        left, other = list(slow), list(fast)
        for edge in own:
            source = left if edge in left else other if edge in other else None
            counts[2 if source is None else int(source is other)] += 1
            if source is not None:
                source.remove(edge)
    return counts[0], counts[1], counts[2]


def _nodes(cell: str) -> list[list[tuple[str, int]]]:
    """The edges of each node, of all cells."""
    genotype = genotypes.from_json(cell)
    nodes: dict[tuple[str, int], list[tuple[str, int]]] = {}
    for name in genotypes.cells_of(genotype):
        for operation, source, node in genotypes.edges_of(genotype, name):
            nodes.setdefault((name, node), []).append((operation, source))
    return list(nodes.values())
