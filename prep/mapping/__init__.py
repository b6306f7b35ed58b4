"""ImageNet's synsets mapped to the classes of a dataset, and label spaces of several datasets made one.

    from prep.mapping import map_classes, write_mapping, describe_mapping
    mapping = map_classes("imagenet21k", "ade20k")
    print(describe_mapping(mapping))
    write_mapping(mapping, Path("i150.tsv"))         # and i150.review.tsv, for a person
    mapping.class_of["n04546855"]                    # -> 0

    from prep.mapping import unite, write_union, describe_union
    union = unite(["cocostuff", "ade20k"])
    print(describe_union(union))

Built offline from WordNet 3.0 (`prep/taxonomies/wordnet`); the rules stand in `prep.mapping.rules`.
"""

from prep.mapping.build import map_classes
from prep.mapping.table import Mapping, Pair, describe_mapping, read_mapping, review_path, write_mapping

__all__ = ["Mapping", "Pair", "describe_mapping", "map_classes", "read_mapping", "review_path", "write_mapping"]
