"""Chemical reactions whose atoms are known by construction."""

import re
from dataclasses import dataclass
from typing import Any

ACIDS = ("CC", "CCC", "CC(C)C", "C1CCCC1", "Cc1ccccc1", "Clc1ccc(cc1)", "COCC", "N#CC")
PARTNERS = ("CC", "CCC", "C(C)C", "C1CCCC1", "Cc1ccccc1", "CCOC", "CC(F)(F)F")
# Element that joins, and what leaves: amides and esters, acid and partner in either order.
JOINTS = ("N", "O")
ATOM = re.compile(r"\[.+\]|Br|Cl|[BCNOSPFIbcnosp]")


@dataclass(frozen=True)
class Reaction:
    """Reactants and their product.

    Attributes:
        smiles: ``reactants>>product``.
        origin: place in ``smiles`` of an atom of the product -> that of the atom it was.
    """

    smiles: str
    origin: dict[int, int]

    @property
    def product(self) -> int:
        """Where the product begins."""
        return self.smiles.index(">>") + 2


def condensations() -> list[Reaction]:
    """An acid and an amine or alcohol each: water goes, the joint comes from the partner.

    Example:
        >>> condensations()[0].smiles
        'CCC(=O)O.NCC>>CCC(=O)NCC'
    """
    found = []
    for joint in JOINTS:
        for acid in ACIDS:
            for number, partner in enumerate(PARTNERS):
                kept, brought = f"{acid}C(=O)", f"{joint}{partner}"
                swapped = number % 2 == 1
                reactants = f"{brought}.{kept}O" if swapped else f"{kept}O.{brought}"
                start = len(reactants) + 2
                of_kept = len(brought) + 1 if swapped else 0
                of_brought = 0 if swapped else len(kept) + 2
                origin = {start + place: of_kept + place for place in range(len(kept))}
                after = start + len(kept)
                origin |= {after + place: of_brought + place for place in range(len(brought))}
                found.append(Reaction(f"{reactants}>>{kept}{brought}", origin))
    return found


def partners_of(reaction: Reaction, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Tokens of the atoms.

    Args:
        reaction: the reaction.
        tokenizer: a fast one, one token an atom.

    Returns:
        tuple: for each token the one that it was, -1 for all but atoms of the product; tokens of
        the reactants' atoms.
    """
    encoded = tokenizer(reaction.smiles, return_offsets_mapping=True)
    spans = encoded["offset_mapping"]
    token_at = {
        begin: token
        for token, (begin, end) in enumerate(spans)
        if end > begin and ATOM.fullmatch(reaction.smiles[begin:end])
    }
    targets = [-1] * len(spans)
    for begin, token in token_at.items():
        if begin >= reaction.product:
            targets[token] = token_at[reaction.origin[begin]]
    return targets, [token for begin, token in token_at.items() if begin < reaction.product]
