"""What a picture shows, as a short word for it, and which split that word belongs to.

In: the name of a picture (an emoji's English name or a file name) and the words that emoji have. Out: a
concept such as `apple`, and `train` or `held`. The same concept in two sets of pictures, in two skin tones or
two genders is in one split, so that nothing held out was seen in other clothes. Knows nothing about files.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

HELD_PERCENT = 15
SPLITS = ("train", "held")
VARIATION = {0xFE0E, 0xFE0F}
SKIN_TONES = set(range(0x1F3FB, 0x1F400))

# Words that say how a thing looks or who does it, not what it is.
_SMALL_WORDS = (
    "a an and at in of on the to for from down up over under out with without left right front back side"
)
_COLOURS = (
    "black white red green blue yellow orange brown purple pink gray grey gold golden silver light dark"
)
_SHAPES = "big small large little mini tall short old new simple plain empty full open closed lit broken"
_KINDS = "cartoon photo clipart icon sign symbol button medium single double many facing older"
_NUMBERS = "one two three four five"
_PEOPLE = "man men woman women boy girl person people male female lady gentleman"
PEOPLE = frozenset(_PEOPLE.split())
LOOKS = PEOPLE | frozenset(" ".join((_SMALL_WORDS, _COLOURS, _SHAPES, _KINDS, _NUMBERS)).split())
FACES = re.compile(r"\b(face|smiley|smileys|smilie|emoticon)\b")
ANIMAL_FACE = re.compile(
    r"\b(dog|cat|monkey|mouse|hamster|rabbit|fox|bear|panda|koala|tiger|lion|cow|pig|frog|horse|moose|dragon|wolf|unicorn)\b"
)


def codepoints(text: str) -> tuple[int, ...]:
    """The code points of an emoji from its hexadecimal name (`1f469-1f3fd-200d-1f680`), without variation
    selectors: the form in which all sets agree."""
    return tuple(
        point for point in (int(part, 16) for part in re.split(r"[-_ ]", text)) if point not in VARIATION
    )


def skin_tones(points: Iterable[int]) -> tuple[int, ...]:
    """The skin tones among code points."""
    return tuple(point for point in points if point in SKIN_TONES)


def without_tones(points: Iterable[int]) -> tuple[int, ...]:
    """The code points without skin tones: the key by which an emoji's name is looked up."""
    return tuple(point for point in points if point not in SKIN_TONES)


def words(name: str) -> list[str]:
    """The words of a name that say what is shown: lower case, singular, no numbers, no colours or genders."""
    spaced = re.sub(r"([a-z])([A-Z])", r"\1 \2", name)
    plain = (_singular(word) for word in re.split(r"[^a-z]+", spaced.lower()) if len(word) > 1)
    return [word for word in plain if word not in LOOKS]


def concept(name: str, vocabulary: frozenset[str] = frozenset()) -> str:
    """The concept of a picture with this name.

    The last word that is in `vocabulary` (the words that emoji have), looked for before a "with": an
    `apple_red_photo` is the concept of the emoji "red apple". Without such a word, all words together. All
    faces that are no animal's are one concept: they differ in a mouth. Where no word is left, it is a person
    or "".
    """
    lowered = re.sub(r"[_\-]+", " ", name.lower())
    if FACES.search(lowered) and not ANIMAL_FACE.search(lowered):
        return "face"
    head = re.split(r"\bwith\b", lowered)[0]
    found = words(re.sub(r"[_\-]+", " ", name)[: len(head)] if head.strip() else name)
    known = [word for word in found if word in vocabulary]
    if known:
        return known[-1]
    return "-".join(found[:4]) or ("person" if PEOPLE & set(lowered.split()) else "")


def vocabulary(names: Iterable[str]) -> frozenset[str]:
    """The words that alone name something: names that are one word when colours and genders are gone."""
    listed = (words(name) for name in names)
    return frozenset(found[0] for found in listed if len(found) == 1)


def split_of(key: str) -> str:
    """`train` or `held` for a concept or a photograph's name: about 15 % are held out, by a hash alone, so
    that new sources never move an old picture to the other side."""
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
    return "held" if number % 100 < HELD_PERCENT else "train"


def _singular(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("ches", "shes", "xes", "toes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word
