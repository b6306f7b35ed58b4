"""What does not fit between two sections of a recipe, and which settings belong to one kind of network alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from train.schema import Recipe

# Settings that only the embedding head or only ladders have; a recipe of another network neither takes nor stores them.
EMBEDDING_ONLY = {
    "model": {"embedding_dim", "renormalise"},
    "loss": {
        "mode", "k", "tau", "learn_tau", "distance", "margin", "margin_weight", "search", "search_every",
        "lvis_negatives",
    },
    "optim": {"embedding_lr_scale", "embedding_momentum", "embedding_power"},
}  # fmt: skip
LADDER_ONLY = {
    "model": {
        "down", "up", "spp", "spp_width", "short_units", "split_block", "ladder_residual", "depthwise", "dilated",
        "auxiliary", "segments",
    },
    "loss": {"aux_weight", "aux_targets"},
}  # fmt: skip
# Settings that came after runs had been stored: at their default they are not stored, so that old runs go on.
ADDED_LATER = {
    "eval": {"window", "stride"},
    "data": {"target_stride", "loader", "scaled_decode", "check"},
    "loss": {"aux_targets"},
    "model": {"drop_path", "spp", "short_units", "split_block"},
}
COSINE_ONLY = {
    "data": {"target_stride"},
    "model": {"cosine_dim", "score", "score_scale"},
    "loss": {
        "image_weight", "attention_weight", "sampled_classes", "attention", "memory_size", "memory_top", "memory_dtype",
        "memory_form", "memory_sync", "foreground", "background", "background_top", "background_threshold",
        "background_distance", "attention_tau",
    },
}  # fmt: skip
NETWORKS = (  # the setting that makes a kind of network, and the settings that it alone has
    ("head", "embedding", EMBEDDING_ONLY),
    ("arch", "ladder", LADDER_ONLY),
    ("head", "cosine", COSINE_ONLY),
)


def left_out(recipe: Recipe) -> dict[str, set[str]]:
    """By section, the settings that are not stored: those that the recipe's network does not have, and ADDED_LATER."""
    found: dict[str, set[str]] = {}
    for key, value, only in NETWORKS:
        has = getattr(recipe.model, key) == value
        for section, keys in () if has else only.items():
            found[section] = found.get(section, set()) | keys
    for section, keys in ADDED_LATER.items():
        part = getattr(recipe, section)
        usual = {key for key in keys if getattr(part, key) == type(part).model_fields[key].default}
        found[section] = found.get(section, set()) | usual
    return found


def _network_misfit(recipe: Recipe) -> str | None:
    """A setting that the recipe's network does not have, or None."""
    for key, value, only in NETWORKS:
        for section, keys in only.items() if getattr(recipe.model, key) != value else ():
            given = sorted(keys & getattr(recipe, section).model_fields_set)
            if given:
                return f'{section}.{given[0]} is set: expected model.{key} = "{value}", or leave it out'
    if recipe.model.head == "embedding":
        if recipe.loss.kind == "kl":
            return 'loss.kind = "kl": expected "cross-entropy" (same gradients) with model.head = "embedding"'
        if recipe.loss.lvis_negatives and recipe.loss.search_every > 1:
            return f"loss.search_every = {recipe.loss.search_every}: expected 1 with loss.lvis_negatives = true"
    return None


def misfit(recipe: Recipe) -> str | None:
    """What does not fit between two sections, or None."""
    data, augment, loop = recipe.data, recipe.augment, recipe.loop
    if data.mode == "rescale" and augment.rescale is None:
        return 'data.mode = "rescale": expected augment.rescale = [low, high]'
    if data.mode == "stored" and augment.rescale is not None:
        return 'augment.rescale is set: expected data.mode = "rescale" (stored scales cannot be rescaled)'
    if data.mode == "rescale" and data.scales != ("1",):
        return f'data.scales = {list(data.scales)}: expected ["1"] with data.mode = "rescale", which reads scale 1'
    if data.scaled_decode and data.mode != "rescale":
        return 'data.scaled_decode = true: expected data.mode = "rescale" (stored scales are read as they are)'
    varied = data.mode == "rescale" or len(data.scales) > 1
    if varied and augment.crop is None and loop.batch // loop.accumulate > 1:
        return "augment.crop is off: expected [height, width], as samples of several sizes share a batch"
    if data.max_classes_per_cell == 1 and not recipe.loss.multi_class_cells:
        return "loss.multi_class_cells = false: expected data.max_classes_per_cell above 1, or no cell holds several"
    if recipe.schedule.min_lr > recipe.optim.lr:
        return f"schedule.min_lr = {recipe.schedule.min_lr}: expected at most optim.lr = {recipe.optim.lr}"
    return _network_misfit(recipe)
