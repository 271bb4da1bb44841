"""How a scene is said: the plain caption, and the many ways in which people would type it."""

from __future__ import annotations

import random

from training.scenes import COLOURS, SHAPES, Scene, Thing

_POSITION_PHRASES: dict[str, tuple[str, ...]] = {
    "at the top left": ("at the top left", "in the top left corner", "in the upper left"),
    "at the top": ("at the top", "near the top"),
    "at the top right": ("at the top right", "in the top right corner", "in the upper right"),
    "on the left": ("on the left", "at the left", "on the left side"),
    "in the center": ("in the center", "in the middle", "in the centre"),
    "on the right": ("on the right", "at the right", "on the right side"),
    "at the bottom left": ("at the bottom left", "in the bottom left corner", "in the lower left"),
    "at the bottom": ("at the bottom", "near the bottom"),
    "at the bottom right": ("at the bottom right", "in the bottom right corner", "in the lower right"),
}
_RELATION_PHRASES: dict[str, tuple[str, ...]] = {
    "to the left of": ("to the left of", "left of", "on the left of"),
    "to the right of": ("to the right of", "right of", "on the right of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath"),
}
_SIZE_PHRASES = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium", "medium sized", ""),
    "large": ("large", "big", "huge"),
}
_COLOUR_PHRASES = {"gray": ("gray", "grey"), "purple": ("purple", "violet"), "lime": ("lime", "light green")}
_SHAPE_PHRASES = {
    "circle": ("circle", "disc", "dot"),
    "diamond": ("diamond", "rhombus"),
    "cross": ("cross", "plus"),
    "ring": ("ring", "donut"),
    "moon": ("moon", "crescent"),
    "square": ("square", "box"),
}
UNKNOWN_WORD = "xyzzy"
"""Stands in captions for a word outside the vocabulary; the tokenizers do not know it either."""

_FILLERS = ("nice", "simple", "clean", "flat", "bright")


def caption(scene: Scene) -> str:
    """The plain caption, always the same for one scene."""
    things = [_with_article("a", _words(thing, _first)) for thing in scene.things]
    if scene.relation:
        body = f"{things[0]} {scene.relation} {things[1]}"
    elif scene.position and scene.position != "in the center":
        body = f"{things[0]} {scene.position}"
    else:
        body = things[0]
    return f"{body} on {_with_article('a', [scene.background])} background"


def _with_article(article: str, words: list[str]) -> str:
    if article == "a" and words[0][0] in "aeiou":
        article = "an"
    return " ".join([article, *words])


def _first(options: tuple[str, ...]) -> str:
    return options[0]


def _words(thing: Thing, choose: object) -> list[str]:
    assert callable(choose)
    size = "" if thing.size == "medium" else choose(_SIZE_PHRASES[thing.size])
    return [
        word
        for word in (
            size,
            choose(_COLOUR_PHRASES.get(thing.colour, (thing.colour,))),
            choose(_SHAPE_PHRASES.get(thing.shape, (thing.shape,))),
        )
        if word
    ]


def varied_caption(scene: Scene, source: random.Random) -> str:
    """One of the ways to say it; half of the time the plain one."""
    if source.random() < 0.5:
        return caption(scene)
    things = [_varied_thing(thing, source) for thing in scene.things]
    if scene.relation:
        body = f"{things[0]} {source.choice(_RELATION_PHRASES[scene.relation])} {things[1]}"
    elif scene.position == "in the center" and source.random() < 0.6:
        body = things[0]
    else:
        body = f"{things[0]} {source.choice(_POSITION_PHRASES[str(scene.position)])}"
    return _with_background(body, scene.background, source)


def _varied_thing(thing: Thing, source: random.Random) -> str:
    words = _words(thing, source.choice)
    if thing.size == "medium" and source.random() < 0.3:
        words.insert(0, source.choice(_SIZE_PHRASES["medium"][:2]))
    chance = source.random()
    if chance < 0.04:
        words.insert(0, source.choice(_FILLERS))
    elif chance < 0.08:
        words.insert(0, UNKNOWN_WORD)
    return _with_article(source.choice(("a", "a", "one", "the")), words)


def _with_background(body: str, background: str, source: random.Random) -> str:
    colour = source.choice(_COLOUR_PHRASES.get(background, (background,)))
    if background == "white" and source.random() < 0.3:
        return body  # who names no background gets a white one
    article = _with_article("a", colour.split())
    return source.choice(
        (
            f"{body} on {article} background",
            f"{body} on {colour}",
            f"{body}, {colour} background",
            f"{colour} background, {body}",
            f"{body} on {article} backdrop",
            f"a picture of {body} on {article} background",
        )
    )


def vocabulary() -> list[str]:
    """Every word that a caption may hold, sorted, without the unknown one."""
    tables = (_POSITION_PHRASES, _RELATION_PHRASES, _SIZE_PHRASES, _COLOUR_PHRASES, _SHAPE_PHRASES)
    phrases = [phrase for table in tables for options in table.values() for phrase in options]
    others = "a an one the on background backdrop picture image drawing of with and in is ,"
    return sorted({*" ".join([*COLOURS, *SHAPES, *_FILLERS, *phrases, others]).split()} - {UNKNOWN_WORD})
