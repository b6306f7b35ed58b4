"""ImageNet's synsets mapped to the classes of a dataset, and label spaces of several datasets made one.

    mapping = map_classes("imagenet21k", "ade20k")     # descendants=True: all kinds of each class as well
    print(describe_mapping(mapping))
    write_mapping(mapping, Path("i150.tsv"))           # and i150.review.tsv, for a person
    mapping.class_of["n04546855"]                      # -> 0, the class index of "wall"

    union = unite(["cocostuff", "ade20k"])             # the first is the base
    print(describe_union(union))
    write_union(union, Path("c171-a150.tsv"))
    write_maps(union, Path("maps"))                    # files for `seg-prep ... --classes`

Targets are datasets ("ade20k"), class tables ("ade20k-150") or files (a list of names, or a TSV with a column `name`).
Built offline from WordNet 3.0 (`prep/taxonomies/wordnet`); the rules stand in `prep.mapping.rules`, the ways of
matching in `prep.mapping.union`.
"""

from prep.mapping.build import map_classes
from prep.mapping.table import Mapping, Pair, describe_mapping, read_mapping, review_path, write_mapping
from prep.mapping.union import Union, unite, write_union
from prep.mapping.union_maps import write_maps
from prep.mapping.union_report import describe_union

__all__ = [
    "Mapping",
    "Pair",
    "Union",
    "describe_mapping",
    "describe_union",
    "map_classes",
    "read_mapping",
    "review_path",
    "unite",
    "write_mapping",
    "write_maps",
    "write_union",
]
